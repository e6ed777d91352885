"""The updates of a step: engines over disjoint parts, and the losses whose turn it is with each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embae.datasets.loading.batch import Batch
from embae.trainer.losses.adversary import in_turn, others_of
from embae.trainer.losses.cluster_memory import ClusterMemory
from embae.trainer.losses.objective import Objective
from embae.trainer.monitoring.step_phases import Phase
from embae.trainer.recipe.stage import Stage
from embae.trainer.training.engine import Engine
from embae.trainer.training.weight_average import Average


class StepUpdates:
    """A stage's engines.

    Args:
        objective: Over the model as it is at the first step that is taken, on the training device.
        keys: The stage.
        name: Its name.
        seed: The run's seed.
        largest: Most rows of a part of a batch.

    Attributes:
        broken: `()`, becomes 1 once a loss was not finite; from then on no weight moves.
    """

    def __init__(self, objective: Objective, keys: Stage, name: str, *, seed: int, largest: int):
        self.broken = torch.zeros((), device=next(objective.parameters()).device)
        loss = keys.loss
        assert loss is not None  # what this kind of stage is for
        turns = in_turn(objective, loss, seed=seed, stage=name)
        engines = {module: Engine(module, keys, largest=largest, broken=self.broken, others=others_of(module, loss))
                   for module in dict.fromkeys(turn.module for turn in turns)}
        self._turns = [(engines[turn.module], turn.terms) for turn in turns]
        self._engines = list(engines.values())
        self._average = Average(objective.model, keys.ema) if keys.ema else None
        self._memories = dict(objective.memories)
        self._beside: dict[str, Average | ClusterMemory] = {**self._memories}
        if self._average:
            self._beside["average"] = self._average

    def step(self, parts: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """All updates of a step.

        Args:
            parts: This rank's share of the global batch, in parts.
            lr: Learning rate.

        Returns:
            The objective's report, on the device.
        """
        report: dict[str, Tensor] = {}
        for engine, terms in self._turns:
            found = engine.step(parts, lr, terms)
            loss = report["loss"] + found.pop("loss", 0) if report else found.pop("loss")
            report |= {**found, "loss": loss}
        if self._average:
            self._average.update(parts[0].step, self.broken)
        for memory in self._memories.values():
            memory.update(parts[0], self.broken)
        return report

    def time_phases(self, phase: Phase) -> None:
        """Has what each engine does run within phases from now on."""
        for engine in self._engines:
            engine.time_phases(phase)

    def state(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU, on every rank."""
        return self._engines[0].state()

    def result(self) -> dict[str, Tensor]:
        """As `state`, of the model that the stage is for: its weights' average where it keeps one."""
        return self.state() | (self._average.whole() if self._average else {})

    def moments(self) -> dict[str, Tensor]:
        """What goes on beside the model, on every rank: every engine's moments, the average, the memory."""
        return {**{f"{number}/{key}": value for number, engine in enumerate(self._engines)
                   for key, value in engine.moments().items()},
                **{f"{name}/{key}": value for name, one in self._beside.items() for key, value in one.whole().items()}}

    def restore_moments(self, found: dict[str, Tensor]) -> None:
        """Goes on with what `moments` gave.

        Raises:
            ValueError: They are of other parameters.
        """
        def below(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}

        for name, one in self._beside.items():
            one.restore(below(name))
        for number, engine in enumerate(self._engines):
            engine.restore_moments(below(f"{number}"))

    def close(self) -> None:
        """Frees what the engines hold."""
        for engine in self._engines:
            engine.close()
