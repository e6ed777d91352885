"""Trains the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embae.trainer.comparison.compare import Run, own_stages, share_stages
from embae.trainer.runs import folder as runfolder
from embae.trainer.runtime.distributed import World, on_first_rank
from embae.trainer.training.run import train


def train_all(runs: Sequence[Run], out: Path, world: World, *, fresh: bool) -> None:
    """Trains the runs of a comparison one after the other, each stage that several share once.

    Args:
        runs: Prepared.
        out: The comparison's folder.
        world: This rank.
        fresh: Share no stages.

    Raises:
        RecipeError: Another comparison holds the folder.
    """
    held = on_first_rank(world, lambda: runfolder.lock(out))
    try:
        for number, run in enumerate(runs):
            on_first_rank(world, lambda run=run: own_stages(run) if fresh else share_stages(run, out))  # type: ignore[misc]
            if world.first:
                print(f"\n── {run.recipe.name}, seed {run.recipe.seed} ({number + 1} of {len(runs)}) ──", flush=True)
            train(run.recipe, run.folder, world)
    finally:
        if held:
            held.close()
