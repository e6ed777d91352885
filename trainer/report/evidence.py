"""What the report's sections on a dataset are drawn from: embeddings of some queries and of the whole gallery."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.keyed import generator
from embae.datasets.view import View
from embae.trainer.facts import Facts, Scored
from embae.trainer.ranking import rank_embeddings
from embae.trainer.scores import Labels, PerQuery

QUERIES = 1000  # at most: what is drawn of more is not told apart


@dataclass(frozen=True)
class Ranked:
    """A model's embeddings, and how its gallery is ranked for each of the queries.

    Attributes:
        row: Its row of the table.
        query: `(Q, Z)` of unit length.
        gallery: `(N, Z)` of unit length.
        results: Of plain distances, whatever the scores of the table were taken by.
    """

    row: str
    query: np.ndarray
    gallery: np.ndarray
    results: PerQuery


@dataclass(frozen=True)
class Evidence:
    """A dataset as models see it.

    Attributes:
        index: The dataset.
        queries: `(Q,)`, the rows of the index that the queries are; a sample where there are more than `QUERIES`.
        gallery: `(N,)`, those of the gallery.
        query_labels, gallery_labels: What is known of them.
        models: The model before adaptation, if the run has one, then the last one.
        seed: Of what is drawn.
    """

    index: Index
    queries: np.ndarray
    gallery: np.ndarray
    query_labels: Labels
    gallery_labels: Labels
    models: list[Ranked]
    seed: int

    @property
    def last(self) -> Ranked:
        """The model that the run is about."""
        return self.models[-1]


def rows_shown(facts: Facts) -> list[str]:
    """The last row whose stage is done, and before it the row that it started from, if any."""
    recipe = facts.recipe
    ready = [row for row, stage in recipe.evaluate.items() if facts.took[stage]]
    if not ready:
        return []
    start = recipe.start(ready[-1])
    return [*([start] if start in ready else []), ready[-1]]


def kept_evidence(facts: Facts, index: Index) -> Evidence | str:
    """What the run's own scoring of its target has kept, or a sentence that says why there is none."""
    files = {row: facts.run / facts.recipe.evaluate[row] / "evaluation" / f"{index.name}.npz"
             for row in rows_shown(facts)}
    if not (there := {row: path for row, path in files.items() if path.is_file()}):
        return "No embeddings are kept yet: the run has scored no model on this dataset."
    return _evidence(facts, index, there)


def taken_evidence(facts: Facts, index: Index) -> tuple[Evidence | str, Scored]:
    """Embeddings and scores of a dataset, taken now.

    Raises:
        DataError: No query has a match.
    """
    from embae.trainer.distributed import join, leave
    from embae.trainer.evaluate import Reading, evaluate
    from embae.trainer.export import Export
    recipe, how = facts.recipe, facts.recipe.scoring
    reading, world = Reading(recipe.data.loader, recipe.data.threads, how.batch), join()
    try:
        with tempfile.TemporaryDirectory(prefix="embae-") as folder:
            files: dict[str, Path] = {}
            rows: dict[str, dict[str, Any]] = {}
            for row in rows_shown(facts):
                files[row] = Path(folder) / f"{len(files)}.npz"
                opened = Export.open(facts.run / recipe.evaluate[row] / "export")
                rows[row] = evaluate(opened.restore().to(world.device), index, opened.spec, how.tta, world, reading,
                                     Path(folder), rerank=how.rerank, keep=files[row])
            return _evidence(facts, index, files), Scored(index.name, how.tta, how.rerank, rows)
    finally:
        leave()


def _evidence(facts: Facts, index: Index, files: dict[str, Path]) -> Evidence | str:
    from embae.trainer.evaluate import labels
    both = View([index], "query"), View([index], "gallery")
    query_labels, gallery_labels = map(labels, both)
    seed = facts.recipe.seed
    chosen = np.arange(len(both[0]))
    if len(chosen) > QUERIES:
        chosen = np.sort(generator(seed, "report", "queries").choice(len(chosen), QUERIES, replace=False))
    known = some(query_labels, chosen)
    models = []
    for row, path in files.items():
        found = _read(path, len(both[0]), len(both[1]))
        if isinstance(found, str):
            return found
        query, gallery = found[0][chosen], found[1]
        results = rank_embeddings(query, gallery, known, gallery_labels)
        models.append(Ranked(row, unit(query), unit(gallery), results))
    if not (models[-1].results.first > 0).any():
        return "No query of this dataset has an image of its identity on another camera of the gallery."
    places = both[0].locate(chosen)[1], both[1].locate(np.arange(len(both[1])))[1]
    return Evidence(index, *places, known, gallery_labels, models, seed)


def _read(path: Path, queries: int, images: int) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        with np.load(path) as kept:
            query, gallery = (np.asarray(kept[name], np.float32) for name in ("query", "gallery"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"{path} cannot be read ({error}); remove it, and embae train scores the model again."
    if query.ndim != 2 or query.shape[0] != queries or gallery.shape != (images, query.shape[1]) or not (
            np.isfinite(query).all() and np.isfinite(gallery).all()):
        return (f"{path} is not of this dataset as it is now: found {query.shape} and {gallery.shape}, wanted "
                f"{queries} and {images} images, all finite.")
    return query, gallery


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings divided by their length."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def some(labels: Labels, rows: np.ndarray | Sequence[int]) -> Labels:
    """The labels of some images."""
    return Labels(labels.pid[rows], labels.camid[rows], labels.known[rows], labels.junk[rows])


def open_index(facts: Facts, dataset: str | None) -> Index | str:
    """The dataset that a report is on, or why there is none; what was asked for by name must be there.

    Raises:
        DataError: The dataset that was asked for is missing or has nothing to score.
    """
    from embae.trainer.rescore import question
    if dataset is not None:
        return question(facts.run, dataset, None, None).index
    recipe = facts.recipe
    try:
        index = Index.open(recipe.data.root / recipe.data.target)
        index.validate()
    except (DataError, OSError) as error:
        return f"The target's images are not here: {error}"
    return index
