"""``embae train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, Nproc, Overrides, RecipeName, Settings
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.fast_imports import gc_paused
from embae.trainer.runtime.launch import count_ranks
from embae.trainer.runtime.signals import StopSignals


def train(
    ctx: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE.")] = None,
    nproc: Nproc = None,
    stage: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="CHECKPOINT", help=(
        "Resume from this checkpoint, RUN/STAGE/checkpoints/step-…. Default: the newest."))] = None,
    profile: Annotated[bool, typer.Option("--profile", help=(
        "Write a trace of a few steps of each stage to RUN/tensorboard, for TensorBoard or ui.perfetto.dev."))] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=(
        "Check recipe and data, print what each stage needs on a rank, and start nothing."))] = False,
    world_size: Annotated[int | None, typer.Option(min=1, help=(
        "With --dry-run: total number of ranks, on any number of machines."))] = None,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=(
        "With --dry-run: also write the result to this file as JSON."))] = None,
    debug: Debug = False,
) -> None:
    """Run the stages of a recipe and score its target.

    If the run is stopped, run the same command again to resume.

    Example: embae train embae-cam data.root=/data/shards --nproc 8
    """
    from embae.trainer.recipe.load import load_recipe
    resolved = load_recipe(recipe, overrides or [], settings or [])
    if dry_run:
        _estimate(resolved, world_size or count_ranks(nproc), to)
        return
    if world_size or to:
        raise RecipeError(f"{'--world-size' if world_size else '--json'}: is only for --dry-run")
    run = out or Path("runs") / resolved.name
    if stage and stage not in resolved.run:
        raise RecipeError(f"--stage {stage}: no such stage; run lists {', '.join(resolved.run)}")
    words = [recipe, *(overrides or []), "--out", str(run)]
    words += [word for name in settings or [] for word in ("--settings", name)]
    words += (["--stage", stage] if stage else []) + (["--debug"] if debug else [])
    words += ["--profile"] if profile else []
    words += ["--resume", str(resume)] if resume else []
    signals = ctx.ensure_object(StopSignals)
    signals.record_in(run)

    def work() -> None:
        with gc_paused():
            from embae.trainer.runtime.distributed import join, leave
        world = join(resolved.timeout)
        with gc_paused():
            from embae.trainer.training.run import TrainOptions
            from embae.trainer.training.run import train as train_stages
        train_stages(resolved, run, world, signals, TrainOptions(last=stage, resume=resume, profile=profile))
        leave()

    run_on_ranks(words, nproc, prepare=lambda ranks: _prepare(resolved, run, ranks), work=work)


def _estimate(recipe: Recipe, ranks: int, to: Path | None) -> None:
    """Checks what would stop a run on this number of ranks, and prints what the run needs."""
    from embae.trainer.runs.preflight import check_run
    from embae.trainer.runs.run_datasets import draw_synthetic
    draw_synthetic(recipe)
    check_run(recipe, ranks)
    from embae.trainer.performance.dry_run import dry_run
    dry_run(recipe, ranks, to)


def _prepare(recipe: Recipe, run: Path, ranks: int) -> None:
    """Checks, in one process and before any rank starts, everything that can fail early."""
    from embae.trainer.runs.preflight import check_run
    from embae.trainer.runs.run_datasets import draw_synthetic
    from embae.trainer.runs.same_recipe import check_same_recipe
    from embae.trainer.runs.stage_init import check_inits
    print(f"run folder: {run}", flush=True)
    check_same_recipe(run, recipe)
    check_inits(recipe, run)
    draw_synthetic(recipe)
    check_run(recipe, ranks, run)
