"""A stage with ``cluster``: it embeds the target's images, clusters them, and writes the clusters as pseudo-labels."""

from __future__ import annotations

import time

import numpy as np
import torch.distributed as dist

from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.label_agreement import measure_agreement
from embae.datasets.sampling.pseudo_labels import write_labels
from embae.datasets.sampling.view import View
from embae.trainer.clustering.registry import Cluster
from embae.trainer.errors import RunError
from embae.trainer.inference.embeddings import embedded, spread_over
from embae.trainer.inference.options import Inference
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.stage_data import open_view
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.runtime.distributed import World
from embae.trainer.training.initial_model import StageStart, initial_model


def run_cluster_stage(context: RunContext, name: str) -> None:
    """Runs a stage with ``cluster``.

    Raises:
        DataError: The target cannot be read.
        WeightsError: What the stage starts from does not fit.
        RunError: The images cannot be clustered, or every image was left out of the clusters.
    """
    recipe, run, world = context.recipe, context.folder, context.world
    stage, view, began = recipe.stages[name], open_view(recipe, name), time.perf_counter()
    assert stage.cluster is not None and stage.data.batch is not None  # checked by the recipe's schema
    start = StageStart(name, recipe.seed, run, view, size=recipe.data.image)
    model = initial_model(recipe.model, stage, start)
    model.to(world.device).eval()
    inference = Inference.of_recipe(recipe, world, run / "cache", tta="none", batch=stage.data.batch)
    # The order of the index depends on pids, which would then change how sums round, where k-means starts and how ties
    # are broken.
    order, labels = order_by_content(view), np.empty(len(view), np.int64)
    with embedded(model, view, inference, rows=order) as embeddings:
        cameras = view.column("camid", order)
        labels[order] = pseudo_labels(embeddings, cameras, stage.cluster, view.names[0], recipe.seed, world)
    if not (labels >= 0).any():
        raise RunError(f"stage {name}: the clustering left out every image; set {stage.cluster.method.advice} in "
                       f"stages.{name}.cluster.{stage.cluster.key}")
    _record_clusters(labels, view, name, context.monitor)
    if world.first:
        cost = StageCost(0, len(view), (time.perf_counter() - began) * world.world_size)
        with finish_stage(run / name, cost) as folder:
            write_labels(folder, view.indexes[0], "train", labels)
    dist.barrier()


def pseudo_labels(embeddings: np.ndarray, cameras: np.ndarray, cluster: Cluster, dataset: str, seed: int,
                  world: World) -> np.ndarray:
    """Pseudo-labels of images, `(N,)` int64: contiguous from 0, and −1 for an image that is left out.

    The result is the same bit for bit on any number of ranks.

    Args:
        embeddings: `(N, Z)`, in an order that does not depend on labels; may be memory-mapped.
        cameras: `(N,)`, the camera of each image.
        cluster: The clustering method and its keys.
        dataset: Name of the images' dataset, for errors.
        seed: Seed of the run.
        world: This rank; each rank passes the same other arguments.

    Raises:
        RunError: There are fewer images than clusters in the recipe, or the embeddings have collapsed.
    """
    try:
        return cluster.method.labels(embeddings, cameras, seed=seed, split=spread_over(world))
    except ValueError as error:
        raise RunError(f"the images of {dataset} cannot be clustered by {cluster.key}: {error}") from error


def _record_clusters(labels: np.ndarray, view: View, name: str, monitor: Monitor) -> None:
    clustered, clusters = int((labels >= 0).sum()), int(labels.max(initial=-1)) + 1
    values: dict[str, float] = {"clusters": clusters, "kept": clustered, "images": len(view)}
    message = f"[{name}] {clusters:,} clusters of {clustered:,} of {len(view):,} images"
    rows = np.arange(len(view))
    if view.column("labelled", rows).all():  # the true labels are used for this record alone
        scores = measure_agreement(labels, view.column("pid", rows), view.column("camid", rows))
        values |= scores
        message += "".join(f", {score.replace('_', ' ')} {value:.3f}" for score, value in scores.items())
    monitor.say(message)
    monitor.record("cluster", name, 0, values)
