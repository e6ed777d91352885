"""Stages that train nothing: they pass over the target's images once and calibrate the model, or cluster them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch.distributed as dist

from embae.datasets.sampling.plan import by_content
from embae.datasets.sampling.pseudo_labels import agreement, write_labels
from embae.datasets.sampling.view import View
from embae.trainer.adaptation.calibration import calibrate
from embae.trainer.adaptation.pseudo_labels import cluster
from embae.trainer.errors import RunError
from embae.trainer.inference.batches import Reading
from embae.trainer.inference.embeddings import embedded
from embae.trainer.model import saved as export
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_data import open_view
from embae.trainer.runs.stage_folder import Done, finish
from embae.trainer.runtime.distributed import World
from embae.trainer.training.initial_model import initial_model


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
    spec, reading = recipe.data.spec, Reading(recipe.data.loader, recipe.data.threads, keys.data.batch)
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
