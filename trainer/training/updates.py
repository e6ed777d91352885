"""The updates of a step: of the engine, and then of what needs no optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embae.datasets.loading.batch import Batch
from embae.trainer.losses.term import TermState
from embae.trainer.monitoring.step_phases import Phase
from embae.trainer.recipe.stage import Stage
from embae.trainer.runtime.distributed import gather_rows
from embae.trainer.training.engine import Engine
from embae.trainer.training.objective import Objective
from embae.trainer.training.weight_average import Average


class StepUpdates:
    """The engine of a stage, the moving average of its weights, and the states of its loss terms.

    Args:
        objective: Over the model as it is at the first step that is taken, on the training device.
        stage: The stage.
        largest: Largest number of rows in a part of a batch.
        trained: Names and parameters that the engine moves; by default all of the objective that train.

    Attributes:
        broken: `()`, becomes 1 once a loss was not finite; from then on no weight moves.
        engine: The engine.
        average: The moving average of the weights, if the stage has one.
    """

    def __init__(self, objective: Objective, stage: Stage, *, largest: int,
                 trained: Sequence[tuple[str, nn.Parameter]] | None = None):
        self.broken = torch.zeros((), device=next(objective.parameters()).device)
        self.engine = Engine(objective, stage, largest=largest, broken=self.broken, trained=trained)
        self.average = Average(objective.model, stage.ema) if stage.ema else None
        self._states = objective.states

    def step(self, parts: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """Makes all updates of a step.

        Args:
            parts: This rank's share of the global batch, in parts.
            lr: Learning rate.

        Returns:
            The objective's report, on the device.
        """
        report = self._update(parts, lr)
        if self.average:
            self.average.update(parts[0].step, self.broken)
        for state in self._states.values():
            state.update(parts[0], self.broken, gather_rows)
        return report

    def _update(self, parts: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        return self.engine.step(parts, lr)

    def time_phases(self, phase: Phase) -> None:
        """Runs forward, backward and optimizer within phases from now on."""
        self.engine.time_phases(phase)

    def state(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU, on every rank."""
        return self.engine.state()

    def result(self) -> dict[str, Tensor]:
        """The state of the model that the stage exports: with the average of its weights, if the stage has one."""
        return self.state() | (self.average.full_state() if self.average else {})

    def moments(self) -> dict[str, Tensor]:
        """What a checkpoint saves besides the model, on every rank: moments of the optimizer, average, states."""
        return {**with_prefix("0/", self.engine.moments()),  # the number of the engine
                **{key: value for name, part in self._followers().items()
                   for key, value in with_prefix(f"{name}/", part.full_state()).items()}}

    def restore_moments(self, moments: dict[str, Tensor]) -> None:
        """Continues from what `moments` returned.

        Raises:
            ValueError: They belong to other parameters.
        """
        for name, part in self._followers().items():
            part.restore(without_prefix(f"{name}/", moments))
        self.engine.restore_moments(without_prefix("0/", moments))

    def _followers(self) -> dict[str, Average | TermState]:
        return {**self._states, **({"average": self.average} if self.average else {})}

    def close(self) -> None:
        """Frees the memory of the engine."""
        self.engine.close()


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names start with a prefix."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
