"""Images of a view to show to people: all images of some identities, so that groups are visible."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import PERSON, View

_MOST_IMAGES = 60  # of an identity


def choose_for_display(view: View, seed: int, *, images: int, identities: int) -> np.ndarray:
    """Chooses images at random: all images of some identities, or, in a view without labels, any images.

    Args:
        view: The images.
        seed: Of the random choice.
        images: Images at most.
        identities: Identities at most.

    Returns:
        Rows of the view, sorted.
    """
    draw = generator(seed, "report", "maps")
    tables = [table for table in view.identities if len(table)]
    if not tables:
        return np.sort(draw.permutation(len(view))[:images])
    rows = np.arange(len(view))
    persons = rows[view.column("labelled", rows).astype(bool) & (view.column("role", rows) == PERSON)]
    pids = view.column("pid", persons)
    chosen: list[np.ndarray] = []
    for pid in draw.permutation(np.unique(pids))[:identities]:
        identity_rows = draw.permutation(persons[pids == pid])[:_MOST_IMAGES]
        if sum(map(len, chosen)) + len(identity_rows) > images:
            break
        chosen.append(identity_rows)
    return np.sort(np.concatenate(chosen))
