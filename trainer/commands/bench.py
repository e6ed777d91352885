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
from embae.trainer.commands.options import Debug, Overrides, RecipeName, Settings
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_data import open_trial_sampler
from embae.trainer.runtime.fast_imports import gc_paused
from embae.trainer.runtime.signals import RESUMABLE


def bench(
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    stage: Annotated[str | None, typer.Option(help="The stage; by default the first one that trains.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each measurement.")] = 20,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here as JSON.")] = None,
    debug: Debug = False,
) -> None:
    """Measure where the time of a stage's steps goes here, and say what the limit is; no run is touched.

    Example: embae bench embae-cam data.root=/data/shards --stage target-embedding --nproc 8
    """
    from embae.trainer.recipe.load import load_recipe
    found = load_recipe(recipe, overrides or [], settings or [])
    name = _stage(found, stage)
    try:
        run_on_ranks(["bench", *sys.argv[2:]], nproc, prepare=lambda ranks: _prepare(found, name, ranks),
                     work=lambda: _work(found, name, steps, to))
    except typer.Exit as ended:
        raise typer.Exit(1 if ended.exit_code == RESUMABLE else ended.exit_code) from None  # nothing can be resumed


def _stage(recipe: Recipe, asked: str | None) -> str:
    trains = [name for name in recipe.run if recipe.stages[name].loss]
    if asked in trains or (not asked and trains):
        return asked or trains[0]
    if asked in recipe.run:
        raise RecipeError(f"--stage {asked}: trains nothing ({recipe.stages[str(asked)].kind}), so there are no steps "
                          f"to measure; stages that train: {', '.join(trains) or 'none'}")
    if asked:
        raise RecipeError(f"--stage {asked}: no such stage; those that train: {', '.join(trains) or 'none'}")
    raise RecipeError(f"{recipe.name}: no stage trains, so there are no steps to measure")


def _alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with this stage only, from random weights: what it starts from need not be there."""
    stage = recipe.stages[name].model_copy(update={"init": "random", "reinit": []})
    return recipe.model_copy(update={"run": [name], "evaluate": {}, "stages": {**recipe.stages, name: stage}})


def _prepare(recipe: Recipe, name: str, ranks: int) -> None:
    """All that can go wrong before any rank starts."""
    from embae.trainer.runs.preflight import check_run
    from embae.trainer.runs.run_datasets import draw_synthetic
    draw_synthetic(recipe)
    check_run(_alone(recipe, name), ranks)
    open_trial_sampler(recipe, name)


def _work(recipe: Recipe, name: str, steps: int, to: Path | None) -> None:
    """One rank of a measurement."""
    store = os.environ.get("EMBAE_STORE")  # our launcher removes its folder, whatever becomes of the ranks
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=Path(store).parent if store else None))

    def end(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, end)  # there is nothing to finish before
    try:
        with gc_paused():
            from embae.trainer.performance.bench import bench as measure
            from embae.trainer.runtime.distributed import join, leave
        world = join(recipe.timeout)
        found = measure(recipe, name, open_trial_sampler(recipe, name), world, folder, steps)
        leave()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if world.first:
        if to:
            to.parent.mkdir(parents=True, exist_ok=True)
            write_json(to, found.tree())
        print(found.text(), flush=True)
