"""Embeddings of query and gallery, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_atomically
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import ROLES
from embae.datasets.sampling.view import View
from embae.trainer.inference.embeddings import embedded, note_unknown_cameras, spread_over
from embae.trainer.inference.options import Inference
from embae.trainer.model.embae import EmbAE
from embae.trainer.retrieval.fixed_point import blocks
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions
from embae.trainer.retrieval.scores import Labels, PerQuery, interval
from embae.trainer.runtime.distributed import World


def labels(view: View) -> Labels:
    """The labels of a view's images that scores depend on."""
    rows = np.arange(len(view))
    labelled, role = view.column("labelled", rows).astype(bool), view.column("role", rows)
    return Labels(view.column("pid", rows), view.column("camid", rows), labelled & (role == ROLES.index("person")),
                  role == ROLES.index("junk"))


def evaluate(model: EmbAE, index: Index, inference: Inference, *, refined: RankingOptions = PLAIN,
             keep: Path | None = None) -> dict[str, Any]:
    """Ranks a dataset's gallery for each of its queries: spread over the ranks, the same bit for bit on any number.

    Args:
        model: In eval mode, on the rank's device.
        index: The dataset.
        inference: How images go through the model.
        refined: What is done to the ranking.
        keep: Where to keep the raw embeddings of query and gallery, in the order of the index; .npz.

    Returns:
        JSON-ready scores, on every rank: `Scores.to_dict` and, under ``interval``, 95 % intervals over resampled
        identities.

    Raises:
        DataError: The dataset has no query or no gallery, or no query has a match.
        FloatingPointError: An embedding is not finite.
    """
    world, both = inference.world, (View([index], "query"), View([index], "gallery"))
    if world.first:
        note_unknown_cameras(model, both)
    with (embedded(model, both[0], inference) as query,
          embedded(model, both[1], inference) as gallery):
        for embeddings in (query, gallery):
            _check(embeddings, index, world)
        both_labels = labels(both[0]), labels(both[1])
        ranked = refined.rank(query, gallery, *both_labels, spread_over(world))
        if not (ranked.first > 0).any():
            raise DataError(f"{index.root}: none of {len(query)} queries has an image of its identity on another "
                            "camera of the gallery, so there is nothing to score; look at pids and camids with embae "
                            "inspect")
        if keep and world.first:
            write_embeddings(keep, query, gallery)
    return scores_dict(ranked, both_labels[0])


def scores_dict(ranked: PerQuery, query_labels: Labels) -> dict[str, Any]:
    """Results of queries, at least one of which has a match, as `evaluate` returns them."""
    values = ranked.values()
    intervals = {name: interval(values[name], query_labels) for name in ("Rank-1", "mAP", "Rank-1-nd", "mAP-nd")}
    return {**ranked.scores().to_dict(), "interval": intervals}


def _check(embeddings: np.ndarray, index: Index, world: World) -> None:
    """Each rank checks its share; all raise, or none."""
    broken = np.zeros(1, np.int64)
    share = spread_over(world).share(len(embeddings))
    for rows in blocks(share.stop - share.start, 4096):
        broken += np.count_nonzero(~np.isfinite(embeddings[share][rows]).all(1))
    if count := int(spread_over(world).add(broken)[0]):
        raise FloatingPointError(f"{index.name}: embeddings of {count} of {len(embeddings)} images are not finite; "
                                 "try a smaller optimizer.lr, or clip: 1.0")


def write_embeddings(path: Path, query: np.ndarray, gallery: np.ndarray) -> None:
    """Saves raw embeddings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, query=query, gallery=gallery))
