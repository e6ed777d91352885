"""Stages that train nothing: they pass over the target's images once and calibrate the model, or cluster them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch.distributed as dist
from scipy import sparse

from embae.datasets.plan import by_content
from embae.datasets.pseudo_labels import agreement, write_labels
from embae.datasets.view import View
from embae.trainer import export
from embae.trainer.calibration import calibrate
from embae.trainer.camera_jaccard import camera_aware_distances
from embae.trainer.clustering import dbscan, kmeans, near_centres, with_outliers
from embae.trainer.distributed import World, broadcast_object, on_first_rank
from embae.trainer.errors import RunError
from embae.trainer.evaluate import Reading, embedded, spread_over
from embae.trainer.initial import initial_model
from embae.trainer.jaccard import jaccard_distances
from embae.trainer.linkage import average_linkage
from embae.trainer.monitor import Monitor
from embae.trainer.pass_keys import DBSCAN, Cluster, KMeans, Linkage
from embae.trainer.preflight import open_view
from embae.trainer.schema import Recipe
from embae.trainer.spread import Spread
from embae.trainer.stage import spec_of
from embae.trainer.stage_folder import Done, finish


def run_pass(recipe: Recipe, name: str, run: Path, world: World, monitor: Monitor) -> None:
    """Runs a stage with ``calibrate`` or ``cluster``.

    Raises:
        DataError: The target cannot be read.
        ExportError: What the stage starts from does not fit.
        RunError: Every image was left out of the clusters.
    """
    keys, view, began = recipe.stages[name], open_view(recipe, name), time.perf_counter()
    assert keys.data.batch is not None  # the schema's promise
    model = initial_model(recipe.model, keys, name, seed=recipe.seed, run=run, view=view, size=recipe.data.image)
    model.to(world.device).eval()
    spec, reading = spec_of(recipe), Reading(recipe.data.loader, recipe.data.threads, keys.data.batch)
    if keys.calibrate:
        calibrate(model, keys.calibrate, view, spec, world, reading)
        monitor.say(f"[{name}] {keys.calibrate.what} calibrated on {len(view):,} images of {', '.join(view.names)}, "
                    f"by {keys.calibrate.per}")
        labels = None
    else:
        assert keys.cluster is not None
        # The index's order knows pids. Rounding would tell it, and so would where k-means begins and how ties end.
        order, labels = by_content(view), np.empty(len(view), np.int64)
        with embedded(model, view, spec, "none", world, reading, run / "cache", rows=order) as embeddings:
            labels[order] = cluster(embeddings, view.column("camid", order), keys.cluster, view.names[0], recipe.seed,
                                    world)
        _report(labels, view, name, monitor)
    if world.first:
        took = Done(0, len(view), (time.perf_counter() - began) * world.world_size)
        with finish(run / name, took) as folder:
            if labels is None:
                state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
                export.write(folder, model, state, keys=recipe.model, spec=spec)
            else:
                write_labels(folder, view.indexes[0], "train", labels)
    dist.barrier()


def cluster(embeddings: np.ndarray, cameras: np.ndarray, keys: Cluster, dataset: str, seed: int,
            world: World) -> np.ndarray:
    """A pseudo-label for each image, contiguous from 0, −1 for what is left out: `(N,)` int64.

    Ranks share Jaccard distances; k-means, and DBSCAN or linkage on what is near, are the first rank's. The same bit
    for bit on any number of them.

    Args:
        embeddings: `(N, Z)`, in an order that knows nothing of labels; may be memory-mapped.
        cameras: `(N,)`, the camera of each.
        keys: The algorithm.
        dataset: Whose images they are.
        seed: The run's.
        world: This rank; all have the same arguments.

    Raises:
        RunError: There are fewer images than clusters asked for, or the embeddings have collapsed.
    """
    with _told(dataset):
        distances = _distances(embeddings, cameras, keys, spread_over(world))

    def find() -> np.ndarray:
        with _told(dataset):
            if keys.kmeans:
                return _kmeans(embeddings, keys.kmeans, seed)
            if keys.dbscan:
                return _dbscan(distances, keys.dbscan)
            linkage = keys.linkage or Linkage()
            return average_linkage(distances, distance=linkage.distance, smallest=linkage.smallest)

    return broadcast_object(on_first_rank(world, find))


@contextmanager
def _told(dataset: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RunError(f"the images of {dataset} cannot be clustered so: {error}") from error


def _distances(embeddings: np.ndarray, cameras: np.ndarray, keys: Cluster, spread: Spread) -> sparse.csr_matrix | None:
    if some := keys.dbscan:
        return jaccard_distances(embeddings, k1=some.k1, k2=some.k2, farthest=some.eps, spread=spread)
    if linkage := keys.linkage:
        return camera_aware_distances(embeddings, cameras, own=linkage.own, others=linkage.others,
                                      average=linkage.average, spread=spread)
    return None


def _kmeans(embeddings: np.ndarray, keys: KMeans, seed: int) -> np.ndarray:
    labels, centres = kmeans(embeddings, keys.clusters, seed=seed)
    return near_centres(embeddings, labels, centres, similarity=keys.similarity, smallest=keys.smallest)


def _dbscan(distances: sparse.csr_matrix, keys: DBSCAN) -> np.ndarray:
    found = dbscan(distances, eps=keys.eps, min_samples=keys.min_samples)
    return with_outliers(found) if keys.outliers == "own" else found


def _report(labels: np.ndarray, view: View, name: str, monitor: Monitor) -> None:
    kept, clusters = int((labels >= 0).sum()), int(labels.max(initial=-1)) + 1
    if not clusters:
        raise RunError(f"stage {name}: the clustering left out every image; set a larger stages.{name}.cluster eps or "
                       "distance, or a lower similarity")
    values: dict[str, float] = {"clusters": clusters, "kept": kept, "images": len(view)}
    said = f"[{name}] {clusters:,} clusters of {kept:,} of {len(view):,} images"
    rows = np.arange(len(view))
    if view.column("labelled", rows).all():  # for the record alone
        found = agreement(labels, view.column("pid", rows), view.column("camid", rows))
        values |= found
        said += "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
    monitor.say(said)
    monitor.record("cluster", name, 0, values)
