"""The context of a run: recipe, folder, this rank, records, and the signals that stop it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals


@dataclass(frozen=True)
class RunContext:
    """A run as one of its ranks sees it.

    Attributes:
        recipe: Checked.
        folder: The run folder.
        world: This rank, with its watchdog.
        monitor: Console, metrics.jsonl and TensorBoard.
        signals: The stop requests of this process.
    """

    recipe: Recipe
    folder: Path
    world: World
    monitor: Monitor
    signals: StopSignals

    @property
    def cache(self) -> Path:
        """The folder of features and embeddings, which can be computed again."""
        return self.folder / "cache"
