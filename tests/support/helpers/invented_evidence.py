"""Invented embeddings of a small dataset, for the sections of a report that are drawn from them."""

from __future__ import annotations

import numpy as np

from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.view import View
from embae.trainer.evaluation.evaluate import labels
from embae.trainer.report.evidence import Evidence, rank
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions
from helpers.noise_datasets import target

__all__ = ["evidence", "target"]


def embeddings(known: object, seed: int, noise: float) -> np.ndarray:
    """A direction an identity, and noise: `(N, 8)`."""
    people = np.random.default_rng(7).normal(size=(100, 8))
    pids = known.pid  # type: ignore[attr-defined]
    return people[pids] + noise * np.random.default_rng(seed).normal(size=(len(pids), 8))


def evidence(index: Index, noises: tuple[float, ...] = (1.5, 0.5), refined: RankingOptions = PLAIN) -> Evidence:
    """The query and gallery of a dataset as models see it whose embeddings have so much noise."""
    views = View([index], "query"), View([index], "gallery")
    known = labels(views[0]), labels(views[1])
    models = []
    for number, noise in enumerate(noises):
        query, gallery = (embeddings(one, 10 * number + at, noise) for at, one in enumerate(known))
        models.append(rank(f"row {number}", (query, gallery), known, np.arange(len(query)), refined)[0])
    rows = [view.locate(np.arange(len(view)))[1] for view in views]
    return Evidence(index, *rows, *known, models, 0, refined)
