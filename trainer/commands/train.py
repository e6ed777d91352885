"""``embae train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.options import Debug, Overrides, RecipeName, Settings
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.fast_imports import gc_paused
from embae.trainer.runtime.launch import ranks_here
from embae.trainer.runtime.signals import stopping


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/RECIPE.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="CHECKPOINT", help=(
        "Go on from this checkpoint, RUN/STAGE/checkpoints/step-…; by default from the newest."))] = None,
    profile: Annotated[bool, typer.Option("--profile", help=(
        "Leave a trace of a few steps of each stage in RUN/tensorboard (TensorBoard's profiler, ui.perfetto.dev)."
    ))] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=(
        "Check recipe and data, say what each stage needs of a rank, and start nothing."))] = False,
    world_size: Annotated[int | None, typer.Option(min=1, help="With --dry-run: ranks in all, which need not be here."
                                                   )] = None,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="With --dry-run: write it here as JSON."
                                            )] = None,
    debug: Debug = False,
) -> None:
    """Run a recipe's stages and score the target; the same command again goes on where it stopped.

    Example: embae train embae-cam data.root=/data/shards --nproc 8
    """
    from embae.trainer.recipe.load import load
    from embae.trainer.runtime.launch import launch
    found = load(recipe, overrides or [], settings or [])
    if dry_run:
        _estimate(found, world_size or ranks_here(nproc), to)
        return
    if world_size or to:
        raise RecipeError(f"{'--world-size' if world_size else '--json'}: goes with --dry-run")
    run = out or Path("runs") / found.name
    if stage and stage not in found.run:
        raise RecipeError(f"--stage {stage}: no such stage; run lists {', '.join(found.run)}")
    if "RANK" in os.environ:
        _work(found, run, stage, resume, profile)
        return
    ranks = ranks_here(nproc)
    prepare(found, run, ranks)
    arguments = [recipe, *(overrides or []), "--out", str(run)]
    arguments += [word for name in settings or [] for word in ("--settings", name)]
    arguments += (["--stage", stage] if stage else []) + (["--debug"] if debug else [])
    arguments += ["--profile"] if profile else []
    arguments += ["--resume", str(resume)] if resume else []
    if code := launch(arguments, ranks):
        raise typer.Exit(code)


def _estimate(recipe: Recipe, ranks: int, to: Path | None) -> None:
    """What a run on so many ranks would be refused for, and what it would need."""
    from embae.trainer.runs.preflight import check
    from embae.trainer.runs.stage_data import draw_synthetic
    draw_synthetic(recipe)
    check(recipe, ranks)
    from embae.trainer.performance.dry_run import dry_run
    dry_run(recipe, ranks, to)


def prepare(recipe: Recipe, run: Path, ranks: int) -> None:
    """What one process does before any rank starts: all that can go wrong early does so here."""
    from embae.trainer.runs.folder import check_same
    from embae.trainer.runs.preflight import check, check_inits
    from embae.trainer.runs.stage_data import draw_synthetic
    print(f"run folder: {run}", flush=True)
    check_same(run, recipe)
    check_inits(recipe, run)
    draw_synthetic(recipe)
    check(recipe, ranks, run)


def _work(recipe: Recipe, run: Path, stage: str | None, resume: Path | None, profile: bool) -> None:
    """One rank of a run, started by our launcher, torchrun or srun."""
    stopping.of(run)
    if "EMBAE_STORE" not in os.environ and os.environ["RANK"] == "0":  # else our launcher has done it
        prepare(recipe, run, int(os.environ["WORLD_SIZE"]))  # meanwhile the other ranks wait for this one to join
    with gc_paused():
        from embae.trainer.runtime.distributed import join, leave
    world = join(recipe.timeout)
    with gc_paused():
        from embae.trainer.training.run import train as run_stages
    run_stages(recipe, run, world, last=stage, resume=resume, profile=profile)
    leave()
