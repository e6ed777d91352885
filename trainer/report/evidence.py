"""The data of the report's sections on a dataset: embeddings of some queries and of the whole gallery."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.remote.url import Url
from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import View
from embae.trainer.retrieval.fixed_point import blocks
from embae.trainer.retrieval.ranking import RankingWork, rank_parts
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions
from embae.trainer.retrieval.scores import Labels, PerQuery
from embae.trainer.retrieval.work_split import WorkSplit
from embae.trainer.runs.summary import DatasetScores, RunSummary

QUERIES = 1000  # at most: with more, points of a plot overlap
_PART = 2**14  # gallery images at a time


@dataclass(frozen=True)
class Ranked:
    """A model's embeddings, and how its gallery is ranked for each of the queries.

    Attributes:
        row: Its row of the table.
        query: `(Q, Z)` of unit length.
        gallery: `(N, Z)` of unit length.
        results: Of each query.
        near: Numbers of some queries `(n,)` → distances of the gallery to these `(n, N)`, which it is ranked by.
    """

    row: str
    query: np.ndarray
    gallery: np.ndarray
    results: PerQuery
    near: Callable[[np.ndarray], np.ndarray]


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
        refined: What is done to the rankings.
    """

    index: Index
    queries: np.ndarray
    gallery: np.ndarray
    query_labels: Labels
    gallery_labels: Labels
    models: list[Ranked]
    seed: int
    refined: RankingOptions = PLAIN

    @property
    def last(self) -> Ranked:
        """The model that the run is about."""
        return self.models[-1]


def rows_shown(facts: RunSummary) -> list[str]:
    """The last row whose stage is done, and before it the row that it started from, if any."""
    recipe = facts.recipe
    ready = [row for row, stage in recipe.evaluate.items() if facts.costs[stage]]
    if not ready:
        return []
    start = recipe.start(ready[-1])
    return [*([start] if start in ready else []), ready[-1]]


def find_evidence(facts: RunSummary, index: Index | str, refined: RankingOptions, *,
                  saved: bool) -> tuple[Evidence | str, DatasetScores | None]:
    """The evidence on a dataset, or a sentence that says why there is none.

    Args:
        facts: The run.
        index: The dataset, or why there is none.
        refined: What is done to the rankings.
        saved: Whether to use the embeddings that the run's scoring has saved; otherwise they are computed now.

    Returns:
        The evidence, and scores that are none of the run's own.

    Raises:
        DataError: Embeddings are taken, and no query has a match.
    """
    if isinstance(index, str):
        return index, None
    return _from_saved(facts, index, refined) if saved else _from_models(facts, index, refined)


def _from_saved(
    facts: RunSummary, index: Index, refined: RankingOptions
) -> tuple[Evidence | str, DatasetScores | None]:
    files = {row: facts.run / facts.recipe.evaluate[row] / "evaluation" / f"{index.name}.npz"
             for row in rows_shown(facts)}
    if not (existing := {row: path for row, path in files.items() if path.is_file()}):
        return "No embeddings are saved yet: the run has scored no model on this dataset.", None
    how = facts.recipe.scoring
    if refined == how.refined:
        return _evidence(facts, index, existing, refined)[0], None
    evidence, results = _evidence(facts, index, existing, refined, every=True)
    if isinstance(evidence, str):
        return evidence, None
    from embae.trainer.evaluation.evaluate import labels, scores_dict
    query_labels = labels(View([index], "query"))
    rows = {row: scores_dict(per_query, query_labels) for row, per_query in results.items()}
    return evidence, DatasetScores(index.name, how.tta, refined, rows)


def _from_models(facts: RunSummary, index: Index, refined: RankingOptions) -> tuple[Evidence | str, DatasetScores]:
    from embae.trainer.evaluation.evaluate import evaluate
    from embae.trainer.inference.options import Inference
    from embae.trainer.model.saved import SavedModel
    from embae.trainer.runtime.distributed import join, leave
    recipe, how = facts.recipe, facts.recipe.scoring
    world = join()
    try:
        with tempfile.TemporaryDirectory(prefix="embae-") as folder:
            files: dict[str, Path] = {}
            rows: dict[str, dict[str, Any]] = {}
            for row in rows_shown(facts):
                files[row] = Path(folder) / f"{len(files)}.npz"
                opened = SavedModel.open(facts.run / recipe.evaluate[row] / "export")
                inference = Inference.of_export(opened, recipe, world, Path(folder), tta=how.tta)
                rows[row] = evaluate(opened.restore().to(world.device), index, inference, refined=refined,
                                     keep=files[row])
            return _evidence(facts, index, files, refined)[0], DatasetScores(index.name, how.tta, refined, rows)
    finally:
        leave()


def _evidence(facts: RunSummary, index: Index, files: dict[str, Path], refined: RankingOptions, *,
              every: bool = False) -> tuple[Evidence | str, dict[str, PerQuery]]:
    """The evidence, and results by row: of all queries if `every`, else of the sampled ones."""
    from embae.trainer.evaluation.evaluate import labels
    both = View([index], "query"), View([index], "gallery")
    query_labels, gallery_labels = map(labels, both)
    seed = facts.recipe.seed
    chosen = np.arange(len(both[0]))
    if len(chosen) > QUERIES:
        chosen = np.sort(generator(seed, "report", "queries").choice(len(chosen), QUERIES, replace=False))
    chosen_labels = select_labels(query_labels, chosen)
    models, ranked = [], {}
    for row, path in files.items():
        embeddings = _read(path, len(both[0]), len(both[1]))
        if isinstance(embeddings, str):
            return embeddings, {}
        model, ranked[row] = rank(row, embeddings, (query_labels, gallery_labels), chosen, refined, every=every)
        models.append(model)
    if not (models[-1].results.first > 0).any():
        return "No query of this dataset has an image of its identity on another camera of the gallery.", {}
    places = both[0].locate(chosen)[1], both[1].locate(np.arange(len(both[1])))[1]
    return Evidence(index, *places, chosen_labels, gallery_labels, models, seed, refined), ranked


def rank(row: str, embeddings: tuple[np.ndarray, np.ndarray], labels: tuple[Labels, Labels], chosen: np.ndarray,
         refined: RankingOptions, *, every: bool = False) -> tuple[Ranked, PerQuery]:
    """Ranks a gallery for some queries, or for every query.

    Args:
        row: The row of the table.
        embeddings: Raw embeddings of query `(Q, Z)` and gallery `(N, Z)`.
        labels: Labels of query and gallery.
        chosen: `(n,)`, the queries that are shown.
        refined: What is done to the ranking; re-ranking uses all queries.
        every: Whether to return the results of all queries.

    Returns:
        What is shown, and results of all queries or of those that are shown.
    """
    (query, gallery), (query_labels, gallery_labels) = embeddings, labels
    if not every and not refined.rerank:
        query, query_labels, chosen = query[chosen], select_labels(query_labels, chosen), np.arange(len(chosen))
    distances = refined.distances(query, gallery, gallery_labels, WorkSplit())
    results = rank_parts(distances, query_labels, gallery_labels, RankingWork(part=_PART))
    candidates = np.flatnonzero(~gallery_labels.junk)

    def near(numbers: np.ndarray) -> np.ndarray:
        matrix = np.full((len(numbers), len(gallery)), np.inf)
        for part in blocks(len(candidates), _PART):
            matrix[:, candidates[part]] = distances(candidates[part])(chosen[numbers])
        return matrix

    shown = PerQuery(*(getattr(results, field.name)[chosen] for field in fields(results)))
    return Ranked(row, unit(query[chosen]), unit(gallery), shown, near), results


def _read(path: Path, queries: int, images: int) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        with np.load(path) as arrays:
            query, gallery = (np.asarray(arrays[name], np.float32) for name in ("query", "gallery"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"{path} cannot be read ({error}); remove it, and embae train scores the model again."
    if query.ndim != 2 or query.shape[0] != queries or gallery.shape != (images, query.shape[1]) or not (
            np.isfinite(query).all() and np.isfinite(gallery).all()):
        return (f"{path} does not match this dataset: found {query.shape} and {gallery.shape}, expected {queries} and "
                f"{images} images, all finite.")
    return query, gallery


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings divided by their length."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def select_labels(labels: Labels, rows: np.ndarray | Sequence[int]) -> Labels:
    """The labels of some images."""
    return Labels(labels.pid[rows], labels.camid[rows], labels.identified[rows], labels.junk[rows])


def _from_where(root: Path | Url) -> str:
    if isinstance(root, Url) or root.is_absolute():
        return ""
    return (f". The recipe's data.root, {root}, is relative to the folder that embae train was started in, and is "
            "neither below this one nor above the run: start embae report there to see ranked lists, cameras and maps")


def open_index(facts: RunSummary, dataset: str | None) -> Index | str:
    """The dataset that a report is on, or why there is none; one that the user named must be there.

    Raises:
        DataError: The dataset that the user named is missing or has nothing to score.
    """
    from embae.trainer.evaluation.score_dataset import prepare_scoring
    if dataset is not None:
        return prepare_scoring(facts.run, dataset).index
    recipe = facts.recipe
    try:
        index = Index.open(recipe.data.root / recipe.data.target)
        index.validate()
    except (DataError, OSError) as error:
        return f"The target's images are not here: {error}{_from_where(recipe.data.root)}"
    return index
