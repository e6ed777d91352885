"""``embae compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, Nproc, Settings
from embae.trainer.runtime.fast_imports import gc_paused
from embae.trainer.runtime.signals import StopSignals


def compare(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE|KEY=VALUE]...", show_default=False, help=(
        "Recipes to compare (default: all shipped recipes), and keys to set in each of them."))] = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe, with the seeds 0, 1, …")] = 3,
    out: Annotated[Path, typer.Option(help="The folder of the comparison.")] = Path("runs/comparison"),
    nproc: Nproc = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train every stage of every run, without sharing.")] = False,
    probes: Annotated[bool, typer.Option("--probes", help="Also print the probes of z and v.")] = False,
    debug: Debug = False,
) -> None:
    """Run several recipes on one target and print one table.

    Stages that recipes have in common are trained once. If the command is stopped, run it again to resume.

    Example: embae compare --settings quick --seeds 3 --nproc 2
    """
    from embae.trainer.comparison.compare import plan, prepare, report
    recipes = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    runs = plan(recipes, overrides, settings or [], seeds, out)

    def check(ranks: int) -> None:
        print(f"comparison of {len(runs)} runs in {out}", flush=True)
        prepare(runs, ranks)

    def work() -> None:
        with gc_paused():
            from embae.trainer.runtime.distributed import join, leave
        world = join(runs[0].recipe.timeout)
        with gc_paused():
            from embae.trainer.comparison.train import train_all
        train_all(runs, out, world, ctx.ensure_object(StopSignals), fresh=fresh)
        leave()

    run_on_ranks(["compare", *sys.argv[2:]], nproc, prepare=check, work=work,
                 finish=lambda: print(report(runs, out, probes)))
