"""Trains the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embae.trainer.comparison.compare import Run, own_stages, share_stages
from embae.trainer.runs.folder_lock import lock_folder
from embae.trainer.runtime.distributed import World, on_first_rank
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training.run import train


def train_all(runs: Sequence[Run], out: Path, world: World, signals: StopSignals, *, fresh: bool) -> None:
    """Trains the runs of a comparison in turn, and each stage that several of them share once.

    Args:
        runs: Prepared.
        out: The comparison's folder.
        world: This rank.
        signals: The stop requests of this process.
        fresh: Share no stages.

    Raises:
        RecipeError: Another comparison holds the folder.
    """
    lock = on_first_rank(world, lambda: lock_folder(out))
    try:
        for number, run in enumerate(runs):
            on_first_rank(world, lambda run=run: own_stages(run) if fresh else share_stages(run, out))  # type: ignore[misc]
            if world.first:
                print(f"\n── {run.recipe.name}, seed {run.recipe.seed} ({number + 1} of {len(runs)}) ──", flush=True)
            train(run.recipe, run.folder, world, signals)
    finally:
        if lock:
            lock.close()
