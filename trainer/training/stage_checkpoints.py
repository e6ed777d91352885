"""What a stage saves while it trains: checkpoints, and a step that failed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from embae.datasets.files.json_files import write_json
from embae.datasets.loading.batch import Batch
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.runtime.distributed import World, on_first_rank
from embae.trainer.training import checkpoint
from embae.trainer.training.checkpoint import Meta
from embae.trainer.training.checkpoint_writer import CheckpointWriter
from embae.trainer.training.updates import StepUpdates


class StageCheckpoints:
    """Keeps a stage's progress.

    Args:
        stage: The stage's folder.
        turns: Its engines.
        before: What was done before this start, with the name of the stage.
        world: This rank.
        monitor: Where records go.
        keep: Checkpoints that stay.
    """

    def __init__(self, stage: Path, turns: StepUpdates, before: Meta, world: World, monitor: Monitor, *, keep: int):
        self._stage, self._turns, self._before, self._world, self._monitor = stage, turns, before, world, monitor
        self._began, self._saved, self._best = time.perf_counter(), before.step, before.best
        self._saver = CheckpointWriter(stage, keep)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, on the rank that writes."""
        return self._saver.failed

    def save(self, step: int) -> float:
        """Writes a checkpoint, unless there is one of this step; every rank must call it.

        Args:
            step: Steps done.

        Returns:
            Seconds that it kept the caller waiting.

        Raises:
            FloatingPointError: On the first rank, where a weight is not finite: a checkpoint of it would be of no use.
            SystemExit: Likewise, on the others.
        """
        if step == self._saved:
            return 0.0
        self._saved, began = step, time.perf_counter()
        model, moments = self._state()
        self._check_finite(model, step)
        if self._world.first:
            self._saver.save(self._meta(step), model, moments)
        waited = time.perf_counter() - began
        self._monitor.record("checkpoint", self._before.stage, step, {"seconds_waited": waited})
        return waited

    def _check_finite(self, model: dict[str, Tensor], step: int) -> None:
        """Every rank has the same state, and so returns the same."""
        broken = [key for key, value in model.items() if value.is_floating_point() and not value.isfinite().all()]
        if not broken:
            return

        def tell() -> None:
            name = self._before.stage
            raise FloatingPointError(
                f"stage {name}, step {step}: {broken[0]} is not finite, though the loss was: a gradient overflowed "
                f"after the last checkpoint. Try a smaller stages.{name}.optimizer.lr, or clip: 1.0, in another folder "
                "with --out; --resume takes that checkpoint there")

        on_first_rank(self._world, tell)

    def wait(self) -> None:
        """Waits, on the rank that writes, until everything is on the disk.

        Raises:
            RunError: It could not be written.
        """
        self._saver.wait()

    def settle(self) -> None:
        """As `wait`, for all ranks."""
        on_first_rank(self._world, self.wait)

    def scored(self, step: int, scores: Mapping[str, Any]) -> None:
        """Records the best scores on the target."""
        if scores["mAP"] > self._best.get("mAP", -1.0):
            self._best = {"step": step, **{name: scores[name] for name in ("Rank-1", "mAP")}}

    def spent(self) -> float:
        """Wall time × ranks so far, over all starts."""
        return self._before.rank_seconds + (time.perf_counter() - self._began) * self._world.world_size

    def fail(self, batch: Batch, losses: dict[str, float]) -> None:
        """Saves the state before a step whose loss is not finite, and the step's images; every rank must call it.

        Weights and moments are those of before the update that failed; running statistics have seen its batch. Where a
        step has several updates in turn, those before it have been made.

        Args:
            batch: Of the step.
            losses: What came out.

        Raises:
            FloatingPointError: On the first rank.
            SystemExit: On the others.
        """
        model, moments = self._state()

        def leave() -> None:
            folder = self._stage / "failed" / f"step-{batch.step:06}"
            checkpoint.write(folder, self._meta(batch.step), model, moments)
            datasets, rows = batch.view.locate(batch.plan)
            images = [{"dataset": batch.view.names[dataset], "key": batch.view.indexes[dataset].key(row)}
                      for dataset, row in zip(datasets, rows, strict=True)]
            tree = {"step": batch.step + 1, "losses": {key: repr(value) for key, value in losses.items()},
                    "images": images}
            write_json(folder / "batch.json", tree)
            name = self._before.stage
            # Of updates in turn, one may have failed whose loss is no part of the sum.
            wrong = next((key for key in ("loss", *losses) if not math.isfinite(losses[key])), "loss")
            which = "loss" if wrong == "loss" else f"loss {wrong}"
            raise FloatingPointError(
                f"stage {name}, step {batch.step + 1}: the {which} is {losses[wrong]}, and no weight was moved by it. "
                f"Try a smaller stages.{name}.optimizer.lr, or clip: 1.0. The state before that and the images of the "
                f"batch are in {folder}; with --resume, and another --out, the step is taken again")

        on_first_rank(self._world, leave)

    def _meta(self, step: int) -> Meta:
        return Meta(self._before.stage, step, self.spent(), self._world.world_size, self._best)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's state and all moments, on the CPU; the moments on the first rank alone."""
        moments = self._turns.moments()
        return self._turns.state(), {key: value.cpu() for key, value in moments.items() if self._world.first}
