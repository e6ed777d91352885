"""Stages that train nothing: they pass over the target's images once and calibrate the model, or cluster them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch.distributed as dist

from embae.datasets.plan import by_content
from embae.datasets.pseudo_labels import agreement, write_labels
from embae.datasets.view import View
from embae.trainer import export
from embae.trainer.calibration import calibrate
from embae.trainer.clustering import dbscan, kmeans, near_centres
from embae.trainer.distributed import World, broadcast_object, on_first_rank
from embae.trainer.errors import RunError
from embae.trainer.evaluate import Reading, embedded
from embae.trainer.initial import initial_model
from embae.trainer.jaccard import jaccard_distances
from embae.trainer.monitor import Monitor
from embae.trainer.pass_keys import DBSCAN, Cluster, KMeans
from embae.trainer.preflight import open_view
from embae.trainer.schema import Recipe
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
    model = initial_model(recipe.model, keys, name, seed=recipe.seed, run=run, cameras=view.cameras())
    model.to(world.device).eval()
    spec, reading = spec_of(recipe), Reading(recipe.data.loader, recipe.data.threads, keys.data.batch)
    if keys.calibrate:
        calibrate(model, keys.calibrate, view, spec, world, reading)
        monitor.say(f"[{name}] {keys.calibrate.what} calibrated on {len(view):,} images of {', '.join(view.names)}, "
                    f"by {keys.calibrate.per}")
        labels = None
    else:
        assert keys.cluster is not None
        clustering, order = keys.cluster, by_content(view)  # the index's order knows pids, and rounding would tell
        found = np.empty((len(view), model.z), np.float32)
        with embedded(model, view, spec, "none", world, reading, run / "cache", rows=order) as embeddings:
            found[order] = embeddings
        labels = broadcast_object(on_first_rank(world, lambda: cluster(found, clustering, view, recipe.seed)))
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


def cluster(embeddings: np.ndarray, keys: Cluster, view: View, seed: int) -> np.ndarray:
    """A pseudo-label for each image of a view, contiguous from 0, −1 for what is left out: `(N,)`.

    Args:
        embeddings: `(N, Z)`.
        keys: The algorithm.
        view: The images.
        seed: The run's.

    Raises:
        RunError: There are fewer images than clusters asked for, or the embeddings have collapsed.
    """
    # By content: the index's order knows pids, and would decide where k-means begins.
    order = by_content(view)
    ordered = embeddings[order]
    try:
        found = _kmeans(ordered, keys.kmeans, seed) if keys.kmeans else _dbscan(ordered, keys.dbscan or DBSCAN())
    except ValueError as error:
        raise RunError(f"the images of {view.names[0]} cannot be clustered so: {error}") from error
    labels = np.empty_like(found)
    labels[order] = found
    return labels


def _kmeans(embeddings: np.ndarray, keys: KMeans, seed: int) -> np.ndarray:
    labels, centres = kmeans(embeddings, keys.clusters, seed=seed)
    return near_centres(embeddings, labels, centres, similarity=keys.similarity, smallest=keys.smallest)


def _dbscan(embeddings: np.ndarray, keys: DBSCAN) -> np.ndarray:
    distances = jaccard_distances(embeddings, k1=keys.k1, k2=keys.k2, farthest=keys.eps)
    return dbscan(distances, eps=keys.eps, min_samples=keys.min_samples)


def _report(labels: np.ndarray, view: View, name: str, monitor: Monitor) -> None:
    kept, clusters = int((labels >= 0).sum()), int(labels.max(initial=-1)) + 1
    if not clusters:
        raise RunError(f"stage {name}: the clustering left out every image; set a larger stages.{name}.cluster eps, or "
                       "a lower similarity")
    values: dict[str, float] = {"clusters": clusters, "kept": kept, "images": len(view)}
    said = f"[{name}] {clusters:,} clusters of {kept:,} of {len(view):,} images"
    rows = np.arange(len(view))
    if view.column("labelled", rows).all():  # for the record alone
        values["purity"] = agreement(labels, view.column("pid", rows))
        said += f", purity {values['purity']:.3f}"
    monitor.say(said)
    monitor.record("cluster", name, 0, values)
