"""The images and the batch plan of a recipe's stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.pseudo_labels import read_labels
from embae.datasets.sampling.relabelled_view import RelabelledView
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View
from embae.trainer.recipe.data import StageData
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.run_datasets import open_indexes
from embae.trainer.runs.stage_folder import EXPORT

Labels = Callable[[Index], np.ndarray]
"""Computes pseudo-labels of a dataset's images, `(images,)` int64."""


def open_view(recipe: Recipe, name: str, run: Path | None = None, labels: Labels | None = None) -> View:
    """Opens the images of a stage.

    Args:
        recipe: Checked.
        name: The stage.
        run: The run folder, which has the pseudo-labels of earlier stages; if None, images have their own labels.
        labels: Pseudo-labels to use instead of those in the run folder.

    Raises:
        DataError: A dataset is missing or damaged.
    """
    stage = recipe.stages[name]
    indexes = open_indexes(recipe, recipe.datasets(stage))
    if not stage.data.labels or not (run or labels):
        return View(indexes, "train")
    target = indexes[-1]
    if labels:
        return RelabelledView(indexes, "train", labels(target))
    assert run is not None  # checked above
    return RelabelledView(indexes, "train", read_labels(run / stage.data.labels / EXPORT, target, "train"))


def open_sampler(recipe: Recipe, name: str, run: Path | None = None,
                 labels: Labels | None = None) -> PKSampler | ShuffledSampler:
    """Opens the batch plan of a stage, over its datasets.

    Args:
        recipe: Checked.
        name: The stage.
        run: The run folder, which has the pseudo-labels of earlier stages.
        labels: Pseudo-labels to use instead of those in the run folder.

    Raises:
        DataError: A dataset is missing or damaged, or has too few images or identities for the batch.
    """
    view, data = open_view(recipe, name, run, labels), recipe.stages[name].data
    if data.batch is not None:
        return ShuffledSampler(view, batch=data.batch, seed=recipe.seed, stage=name)
    assert data.P is not None and data.K is not None  # checked by the recipe's schema
    for key, mapping in (("P", data.P), ("weights", data.weights)):
        if isinstance(mapping, dict) and set(mapping) != set(view.names):
            raise DataError(f"stages.{name}.data.{key}: found {', '.join(mapping)}; "
                            f"expected each of {', '.join(view.names)}")
    weights = data.weights or _merged_weights(recipe, recipe.datasets(recipe.stages[name]), view)
    options = PKOptions(_identities_per_batch(data, view), data.K, weights, data.mix, data.window)
    return PKSampler(view, options, seed=recipe.seed, stage=name)


def open_trial_sampler(recipe: Recipe, name: str, most: bool = False) -> PKSampler | ShuffledSampler:
    """Opens the batch plan of a stage that is tried alone, with placeholders for the labels of an earlier stage.

    Args:
        recipe: Checked.
        name: The stage.
        most: With as many identities as the clustering may find, not about as many as are likely.

    Raises:
        DataError: The data are missing, damaged or too few.
    """
    stage = recipe.stages[name]
    data = stage.data
    if not data.labels:
        return open_sampler(recipe, name)
    clustering = recipe.stages[data.labels].cluster
    assert clustering is not None and data.P is not None and data.K is not None  # checked by the recipe's schema
    least = max(data.P.values()) if isinstance(data.P, dict) else data.P
    cluster_size = clustering.method.smallest_cluster if most else 4 * data.K
    return open_sampler(recipe, name, labels=placeholder_labels(recipe, stage, cluster_size, least))


def placeholder_labels(recipe: Recipe, stage: Stage, cluster_size: int = 1, least: int = 1) -> Labels:
    """Placeholders for the pseudo-labels that the clustering will compute.

    Args:
        recipe: Checked.
        stage: A stage that reads its images by pseudo-labels.
        cluster_size: Images of a cluster, where the clustering method chooses the number of clusters.
        least: The least number of clusters, in that case.
    """
    cluster = recipe.stages[stage.data.labels or ""].cluster
    assert cluster is not None  # checked by the recipe's schema

    def labels(target: Index) -> np.ndarray:
        images = target.count("train")
        return np.arange(images) % cluster.method.cluster_count(images, cluster_size, least)

    return labels


def _identities_per_batch(data: StageData, view: View) -> int | dict[str, int]:
    """P, limited to the number of clusters, which a recipe cannot know. With fewer than two, P is refused."""
    assert data.P is not None
    clusters = len(view.identities[-1])
    if not data.labels or isinstance(data.P, dict) or data.mix or clusters < 2:
        return data.P
    return dict.fromkeys(view.names, data.P) | {view.names[-1]: min(data.P, clusters)}


def _merged_weights(recipe: Recipe, datasets: Sequence[str], view: View) -> dict[str, float] | None:
    """Weights of all datasets of a view, if one of them is a merged set with weights."""
    folders = [recipe.data.root / dataset for dataset in datasets]
    sets = [Merged.open(folder) for folder in folders if is_merged(folder)]
    weighted = [merged for merged in sets if merged.weighted]
    if not weighted:
        return None
    images = {name: int(table[:, 2].sum()) for name, table in zip(view.names, view.identities, strict=True)}
    return {**images, **{name: weight for merged in weighted for name, weight in merged.weights(images).items()}}
