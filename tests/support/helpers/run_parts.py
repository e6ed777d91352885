"""A run and one of its stages, as a rank's own process would put them together."""

from __future__ import annotations

from pathlib import Path

from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training.checkpoint import Checkpoint
from embae.trainer.training.stage import StageRun


def context(recipe: Recipe, run: Path, world: World) -> RunContext:
    return RunContext(recipe, run, world, Monitor.open(run, world.first), StopSignals())


def begin_stage(recipe: Recipe, name: str, run: Path, world: World, resume: Checkpoint | None = None) -> StageRun:
    return StageRun(context(recipe, run, world), name, open_sampler(recipe, name, run), resume)
