"""A stage with ``calibrate``: it puts statistics of the target's images into the model, and exports the model."""

from __future__ import annotations

import time

import torch.distributed as dist

from embae.trainer.inference.calibration import calibrate
from embae.trainer.inference.options import Inference
from embae.trainer.model import saved
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.stage_data import open_view
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.training.initial_model import StageStart, initial_model


def run_calibrate_stage(context: RunContext, name: str) -> None:
    """Runs a stage with ``calibrate``.

    Raises:
        DataError: The target cannot be read.
        WeightsError: What the stage starts from does not fit.
    """
    recipe, run, world = context.recipe, context.folder, context.world
    stage, view, began = recipe.stages[name], open_view(recipe, name), time.perf_counter()
    assert stage.calibrate is not None and stage.data.batch is not None  # checked by the recipe's schema
    start = StageStart(name, recipe.seed, run, view, size=recipe.data.image)
    model = initial_model(recipe.model, stage, start)
    model.to(world.device).eval()
    inference = Inference.of_recipe(recipe, world, context.cache, tta="none", batch=stage.data.batch)
    calibrate(model, stage.calibrate, view, inference)
    context.monitor.say(f"[{name}] {stage.calibrate.what} calibrated on {len(view):,} images of "
                        f"{', '.join(view.names)}, by {stage.calibrate.per}")
    if world.first:
        cost = StageCost(0, len(view), (time.perf_counter() - began) * world.world_size)
        with finish_stage(run / name, cost) as folder:
            state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
            saved.write(folder, model, state, keys=recipe.model, spec=recipe.data.spec)
    dist.barrier()
