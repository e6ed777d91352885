"""Some images of a view, for people to look at: all images of some identities, so that groups can be seen."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import PERSON, View

_EACH = 60  # images of an identity at most


def choose(view: View, seed: int, *, images: int, identities: int) -> np.ndarray:
    """Rows of a view: all images of some identities, or, where nobody is labelled, any images; rising.

    Args:
        view: The images.
        seed: Of the draw.
        images: How many at most.
        identities: Of how many people at most.
    """
    draws = generator(seed, "report", "maps")
    tables = [table for table in view.identities if len(table)]
    if not tables:
        return np.sort(draws.permutation(len(view))[:images])
    rows = np.arange(len(view))
    persons = rows[view.column("labelled", rows).astype(bool) & (view.column("role", rows) == PERSON)]
    pids = view.column("pid", persons)
    chosen: list[np.ndarray] = []
    for pid in draws.permutation(np.unique(pids))[:identities]:
        own = draws.permutation(persons[pids == pid])[:_EACH]
        if sum(map(len, chosen)) + len(own) > images:
            break
        chosen.append(own)
    return np.sort(np.concatenate(chosen))
