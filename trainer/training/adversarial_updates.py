"""The steps of an adversarial autoencoder (Makhzani et al. 2015): several updates in turn, by two engines.

In each step the engine of the autoencoder takes an update for the reconstruction. Then the discriminator's engine
learns to tell codes [z, v] from Gaussian noise, then the encoders are moved so that it cannot, and then the other loss
terms have their turn (arXiv 1807.10591 §4, which reports that the embedding gets worse by it). No other recipe needs
more than one engine in a stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from embae.datasets.loading.batch import Batch
from embae.trainer.monitoring.step_phases import Phase
from embae.trainer.recipe.stage import Stage
from embae.trainer.training.adversary import Noise, own_parameters, updates_in_turn
from embae.trainer.training.engine import Engine
from embae.trainer.training.objective import Objective
from embae.trainer.training.updates import StepUpdates, with_prefix, without_prefix


class AdversarialUpdates(StepUpdates):
    """The updates of an adversarial stage.

    Args:
        objective: Over the model as it is at the first step that is taken, on the training device.
        stage: The stage.
        noise: Draws the noise that the discriminator compares codes with.
        largest: Largest number of rows in a part of a batch.
    """

    def __init__(self, objective: Objective, stage: Stage, noise: Noise, *, largest: int):
        assert stage.loss is not None  # a stage that trains
        super().__init__(objective, stage, largest=largest, trained=own_parameters(objective, stage.loss))
        self._updates = updates_in_turn(objective, stage.loss, noise)
        adversary = next(update.module for update in self._updates if update.module is not objective)
        self.adversary = Engine(adversary, stage, largest=largest, broken=self.broken)
        self._engines = {objective: self.engine, adversary: self.adversary}

    def _update(self, parts: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        report: dict[str, Tensor] = {}
        for module, losses in self._updates:
            module.active = losses
            part = self._engines[module].step(parts, lr)
            loss = report["loss"] + part.pop("loss", 0) if report else part.pop("loss")
            report |= {**part, "loss": loss}
        return report

    def time_phases(self, phase: Phase) -> None:
        super().time_phases(phase)
        self.adversary.time_phases(phase)

    def moments(self) -> dict[str, Tensor]:
        return super().moments() | with_prefix("1/", self.adversary.moments())

    def restore_moments(self, moments: dict[str, Tensor]) -> None:
        super().restore_moments(moments)
        self.adversary.restore_moments(without_prefix("1/", moments))

    def close(self) -> None:
        super().close()
        self.adversary.close()


def build_updates(objective: Objective, stage: Stage, noise: Noise, *, largest: int) -> StepUpdates:
    """The updates of a stage that trains, adversarial or not; arguments as of `AdversarialUpdates`."""
    if stage.loss is not None and stage.loss.adversarial:
        return AdversarialUpdates(objective, stage, noise, largest=largest)
    return StepUpdates(objective, stage, largest=largest)
