"""The discriminator of an adversarial autoencoder, the noise that it learns from, and the order of a step's updates.

Without DeepSpeed, so that a dry run can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.keyed_random import generator
from embae.trainer.losses.adversarial import taken_for_noise
from embae.trainer.losses.precision import exact
from embae.trainer.losses.registry import Loss
from embae.trainer.runtime.distributed import sum_over_ranks
from embae.trainer.training.objective import Objective
from embae.trainer.training.trainable import Trainable

DISCRIMINATOR = "discriminator"  # the name of the loss in reports
Noise = Callable[[Batch, int], np.ndarray]
"""Gives the noise `(N, size)` of a rank's images of a batch."""


class Update(NamedTuple):
    """An update of a step: the module whose weights it moves, and the losses that it computes."""

    module: Trainable
    losses: Collection[str]


class Adversary(Trainable):
    """The discriminator learns to tell noise from codes, over the global batch.

    Args:
        objective: That of the autoencoder that computes the codes; its parameters are not this module's.
        noise: Draws the noise.
    """

    def __init__(self, objective: Objective, noise: Noise):
        super().__init__()
        self.active = (DISCRIMINATOR,)
        self.discriminator = objective.model.discriminator
        self._objective = (objective,)  # in a tuple, so that it does not become a submodule
        self._noise = noise

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            code = self._objective[0].encode(batch).code()
        noise = to_device(self._noise(batch, code.shape[1]), code.device).to(code.dtype)
        scores = self.discriminator(torch.cat([noise, code]))
        with torch.autocast(code.device.type, enabled=False):
            of_noise, of_codes = exact(scores).split(len(code))
            rows = len(batch.plan)
            loss = taken_for_noise(of_noise, rows) + taken_for_noise(-of_codes, rows)
            right = ((of_noise > 0).sum() + (of_codes < 0).sum()) / (2 * rows)
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        return world_size * loss, {DISCRIMINATOR: sum_over_ranks(loss.detach()), "told_apart": sum_over_ranks(right)}


def gaussian_noise(seed: int, stage: str) -> Noise:
    """Gaussian noise that is drawn for the global batch: a slot gets the same noise for any number of ranks.

    Args:
        seed: Seed of the run.
        stage: Name of the stage.
    """
    def draw(batch: Batch, size: int) -> np.ndarray:
        draws = generator(seed, stage, "noise", batch.step)
        return draws.standard_normal((len(batch.plan), size), dtype=np.float32)[batch.slots]

    return draw


def updates_in_turn(objective: Objective, loss: Loss, noise: Noise) -> list[Update]:
    """The updates of a step, in their order; a single one for a loss that is not adversarial.

    Args:
        objective: That of the stage.
        loss: The terms of the stage.
        noise: Draws the noise that the discriminator compares codes with.
    """
    if not loss.adversarial:
        return [Update(objective, loss.terms())]
    adversary = Adversary(objective, noise)
    others = [term for term in loss.terms() if term not in ("reconstruction", "adversarial")]
    return [Update(objective, ["reconstruction"]), Update(adversary, adversary.active),
            *(Update(objective, [term]) for term in ("adversarial", *others))]


def own_parameters(module: Trainable, loss: Loss) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that the engine of a module moves: those that train, but not another engine's.

    Args:
        module: The objective or its adversary.
        loss: The terms of the stage.
    """
    foreign: set[int] = set()
    if loss.adversarial and isinstance(module, Objective):
        foreign = {id(parameter) for parameter in module.model.discriminator.parameters()}
    return [(name, parameter) for name, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) not in foreign]
