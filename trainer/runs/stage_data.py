"""The images and the batch plan of a recipe's stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from embae.datasets.console.progress import progress
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import CARD, Index
from embae.datasets.index.merged import Merged, check_apart, is_merged
from embae.datasets.sampling.plan import PKSampler, ShuffledSampler
from embae.datasets.sampling.pseudo_labels import RelabelledView, read_labels
from embae.datasets.sampling.view import View
from embae.trainer.recipe.data import StageData
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.stage_folder import EXPORT

Labels = Callable[[Index], np.ndarray]
"""Pseudo-labels of a dataset's images, `(images,)` int64."""


def draw_synthetic(recipe: Recipe) -> None:
    """Draws and shards the synthetic datasets that the recipe reads and that are not there yet.

    Raises:
        DataError: An option that the generator does not take.
    """
    root = recipe.data.root
    for name, options in recipe.data.synthetic.items():
        assert isinstance(root, Path)  # the schema's promise
        if name in (*recipe.data.sources, recipe.data.target) and not (root / name / CARD).exists():
            from embae.datasets.readers.read import read_records
            from embae.datasets.sharding.write_shards import write_shards
            records = read_records("synthetic", Path(), {key: str(value) for key, value in options.items()})
            write_shards(name, records, root, source={"reader": "synthetic", "options": dict(options)},
                         progress=progress)


def open_view(recipe: Recipe, name: str, run: Path | None = None, labels: Labels | None = None) -> View:
    """The images of a stage.

    Args:
        recipe: Checked.
        name: The stage.
        run: The run folder, where the pseudo-labels of earlier stages are; None leaves them out.
        labels: Others in place of them.

    Raises:
        DataError: A dataset is missing or damaged.
    """
    stage = recipe.stages[name]
    indexes = open_all(recipe, recipe.datasets(stage))
    if stage.data.labels and (run or labels):
        target = indexes[-1]
        found = labels(target) if labels else read_labels(Path(run or "") / stage.data.labels / EXPORT, target, "train")
        return RelabelledView(indexes, "train", found)
    return View(indexes, "train")


def open_stage(recipe: Recipe, name: str, run: Path | None = None,
               labels: Labels | None = None) -> PKSampler | ShuffledSampler:
    """The batch plan of a stage, over its datasets.

    Args:
        recipe: Checked.
        name: The stage.
        run: The run folder, where the pseudo-labels of earlier stages are.
        labels: Others in place of them.

    Raises:
        DataError: A dataset is missing or damaged, or has too few images or identities for the batch.
    """
    view, data = open_view(recipe, name, run, labels), recipe.stages[name].data
    if data.batch is not None:
        return ShuffledSampler(view, batch=data.batch, seed=recipe.seed, stage=name)
    assert data.P is not None and data.K is not None  # the schema's promise
    for key, mapping in (("P", data.P), ("weights", data.weights)):
        if isinstance(mapping, dict) and set(mapping) != set(view.names):
            raise DataError(f"stages.{name}.data.{key}: found {', '.join(mapping)}; "
                            f"wanted each of {', '.join(view.names)}")
    weights = data.weights or _merged_weights(recipe, recipe.datasets(recipe.stages[name]), view)
    return PKSampler(view, P=_taken(data, view), K=data.K, seed=recipe.seed, stage=name, weights=weights, mix=data.mix,
                     window=data.window)


def _taken(data: StageData, view: View) -> int | dict[str, int]:
    """P, but no more of a target's pseudo-labels than there are, which a recipe cannot know; it takes two at least."""
    assert data.P is not None
    clusters = len(view.identities[-1])
    if not data.labels or isinstance(data.P, dict) or data.mix or clusters < 2:
        return data.P
    return dict.fromkeys(view.names, data.P) | {view.names[-1]: min(data.P, clusters)}


def invented(recipe: Recipe, stage: Stage, cluster_size: int = 1, least: int = 1) -> Labels:
    """Pseudo-labels in place of those that the clustering will compute.

    Args:
        recipe: Checked.
        stage: A stage that reads its images by pseudo-labels.
        cluster_size: Images of a cluster, if the clustering itself finds how many clusters there are.
        least: The least number of clusters, likewise.
    """
    cluster = recipe.stages[stage.data.labels or ""].cluster
    assert cluster is not None  # checked by the recipe's schema

    def labels(target: Index) -> np.ndarray:
        images = target.count("train")
        return np.arange(images) % cluster.method.cluster_count(images, cluster_size, least)

    return labels


def scores_target(recipe: Recipe) -> bool:
    """Whether a run looks at the target to score something on it."""
    return bool(recipe.evaluate) or any(recipe.stages[name].evaluate_every for name in recipe.run)


def can_score(index: Index) -> bool:
    """Whether a dataset has labelled queries and a gallery."""
    return index.count("gallery") > 0 and bool(index.labelled[index.rows("query")].any())


def _open(recipe: Recipe, dataset: str) -> Index:
    try:
        return Index.open(recipe.data.root / dataset)
    except DataError as error:
        raise DataError(f"{error} (data.root is {recipe.data.root})") from error


def open_all(recipe: Recipe, datasets: Sequence[str]) -> list[Index]:
    """The indexes that names in a recipe stand for: one each, or those of a merged set's members.

    Raises:
        DataError: A dataset is missing or damaged, a merged set's has changed since, or two cannot be told apart.
    """
    found: list[Index] = []
    for dataset in datasets:
        folder = recipe.data.root / dataset
        found += Merged.open(folder).indexes if is_merged(folder) else [_open(recipe, dataset)]
    check_apart(found)
    return found


def _merged_weights(recipe: Recipe, datasets: Sequence[str], view: View) -> dict[str, float] | None:
    """Weights of all datasets of a view where a merged set among them has some."""
    folders = [recipe.data.root / dataset for dataset in datasets]
    merged = [one for one in (Merged.open(folder) for folder in folders if is_merged(folder)) if one.weighted]
    if not merged:
        return None
    images = {name: int(table[:, 2].sum()) for name, table in zip(view.names, view.identities, strict=True)}
    return {**images, **{name: weight for one in merged for name, weight in one.weights(images).items()}}


def open_plan(recipe: Recipe, name: str, most: bool = False) -> PKSampler | ShuffledSampler:
    """The stage's batch plan; where an earlier stage would make its labels, with labels made up.

    Args:
        recipe: Checked.
        name: The stage.
        most: With as many identities as there may be, not about as many as there are likely to be.

    Raises:
        DataError: The data are missing, damaged or too few.
    """
    stage = recipe.stages[name]
    data = stage.data
    if not data.labels:
        return open_stage(recipe, name)
    clustering = recipe.stages[data.labels].cluster
    assert clustering is not None and data.P is not None and data.K is not None  # the schema's promise
    least = max(data.P.values()) if isinstance(data.P, dict) else data.P
    cluster_size = clustering.method.smallest_cluster if most else 4 * data.K
    return open_stage(recipe, name, labels=invented(recipe, stage, cluster_size, least))
