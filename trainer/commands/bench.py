"""``embae bench``."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.files.json_files import write_json
from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, JsonFile, Nproc, Overrides, RecipeName, Settings
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_data import open_trial_sampler
from embae.trainer.runtime.fast_imports import gc_paused
from embae.trainer.runtime.signals import RESUMABLE


def bench(
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    stage: Annotated[str | None, typer.Option(help="The stage to measure. Default: the first one that trains.")] = None,
    nproc: Nproc = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each measurement.")] = 20,
    to: JsonFile = None,
    debug: Debug = False,
) -> None:
    """Measure where the time of a training step goes.

    It measures the loader, the model and the exchanges between ranks on this machine, with the recipe's data and random
    weights, and says which of them is the limit. It changes no run.

    Example: embae bench embae-cam data.root=/data/shards --stage target-embedding --nproc 8
    """
    from embae.trainer.recipe.load import load_recipe
    resolved = load_recipe(recipe, overrides or [], settings or [])
    name = _choose_stage(resolved, stage)
    try:
        run_on_ranks(["bench", *sys.argv[2:]], nproc, prepare=lambda ranks: _prepare(resolved, name, ranks),
                     work=lambda: _work(resolved, name, steps, to))
    except typer.Exit as ended:
        raise typer.Exit(1 if ended.exit_code == RESUMABLE else ended.exit_code) from None  # nothing can be resumed


def _choose_stage(recipe: Recipe, stage: str | None) -> str:
    training = [name for name in recipe.run if recipe.stages[name].loss]
    if stage in training or (not stage and training):
        return stage or training[0]
    if stage in recipe.run:
        raise RecipeError(f"--stage {stage}: trains nothing ({recipe.stages[str(stage)].kind}), so there are no steps "
                          f"to measure; stages that train: {', '.join(training) or 'none'}")
    if stage:
        raise RecipeError(f"--stage {stage}: no such stage; those that train: {', '.join(training) or 'none'}")
    raise RecipeError(f"{recipe.name}: no stage trains, so there are no steps to measure")


def _alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with this stage only, from random weights: what the stage starts from need not exist."""
    stage = recipe.stages[name].model_copy(update={"init": "random", "reinit": []})
    return recipe.model_copy(update={"run": [name], "evaluate": {}, "stages": {**recipe.stages, name: stage}})


def _prepare(recipe: Recipe, name: str, ranks: int) -> None:
    """Checks, in one process and before any rank starts, everything that can fail early."""
    from embae.trainer.runs.preflight import check_run
    from embae.trainer.runs.run_datasets import draw_synthetic
    draw_synthetic(recipe)
    check_run(_alone(recipe, name), ranks)
    open_trial_sampler(recipe, name)


def _work(recipe: Recipe, name: str, steps: int, to: Path | None) -> None:
    """Measures on one rank."""
    store = os.environ.get("EMBAE_STORE")  # our launcher removes its folder, however the ranks end
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=Path(store).parent if store else None))

    def end(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, end)  # nothing has to be finished first
    try:
        with gc_paused():
            from embae.trainer.performance.bench import bench as measure
            from embae.trainer.runtime.distributed import join, leave
        world = join(recipe.timeout)
        report = measure(recipe, name, open_trial_sampler(recipe, name), world, folder, steps)
        leave()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if world.first:
        if to:
            to.parent.mkdir(parents=True, exist_ok=True)
            write_json(to, report.tree())
        print(report.text(), flush=True)
