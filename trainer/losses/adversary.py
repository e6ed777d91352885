"""The discriminator's side of an adversarial autoencoder (Makhzani et al. 2015): an engine of its own.

In each step the autoencoder's engine takes a turn for the reconstruction, then the discriminator's engine learns to
tell codes [z, v] from Gaussian noise, then the encoders are moved so that it cannot, then the triplet loss has its turn
(arXiv 1807.10591 §4, which reports that the embedding gets worse by it).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.keyed_random import generator
from embae.trainer.losses import functions as losses
from embae.trainer.losses.objective import Objective, exact
from embae.trainer.recipe.losses import Loss
from embae.trainer.runtime.distributed import sum_over_ranks

TERM = "discriminator"


class Update(NamedTuple):
    """An update: the module that an engine is over, and the losses whose turn it is."""

    module: Objective | Adversary
    terms: Collection[str]


class Adversary(nn.Module):
    """Noise told from codes, over the global batch.

    Args:
        objective: Of the autoencoder that makes the codes; its parameters are not this module's.
    """

    def __init__(self, objective: Objective, *, seed: int, stage: str):
        super().__init__()
        self.discriminator = objective.model.discriminator
        self._others = (objective,)  # in a tuple, so that it does not become a submodule
        self._key = seed, stage

    def forward(self, batch: Batch, _: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to call backward on, scaled for an engine that averages over ranks, and a report."""
        with torch.no_grad():
            code = self._others[0].codes(batch)
        noise = to_device(self._noise(batch, code.shape[1]), code.device).to(code.dtype)
        told = self.discriminator(torch.cat([noise, code]))
        with torch.autocast(code.device.type, enabled=False):
            noisy, coded = exact(told).split(len(code))
            rows = len(batch.plan)
            loss = losses.real(noisy, rows) + losses.real(-coded, rows)
            right = ((noisy > 0).sum() + (coded < 0).sum()) / (2 * rows)
        world = dist.get_world_size() if dist.is_initialized() else 1
        return world * loss, {TERM: sum_over_ranks(loss.detach()), "told_apart": sum_over_ranks(right)}

    def _noise(self, batch: Batch, size: int) -> np.ndarray:
        # Drawn for the global batch, so that a slot gets the same noise for any world size.
        draw = generator(*self._key, "noise", batch.step).standard_normal((len(batch.plan), size), dtype=np.float32)
        return draw[batch.slots]

    def unmoved(self, batch: Batch, terms: Collection[str]) -> Iterator[nn.Parameter]:
        """None: all of it moves."""
        return iter(())


def in_turn(objective: Objective, loss: Loss, *, seed: int, stage: str) -> list[Update]:
    """The updates of a step, in their order.

    Args:
        objective: Over the model that the stage trains.
        loss: The stage's terms.
        seed: The run's seed.
        stage: The stage's name.
    """
    if not loss.adversarial:
        return [Update(objective, loss.terms())]
    adversary = Adversary(objective, seed=seed, stage=stage)
    others = [term for term in loss.terms() if term not in ("reconstruction", "adversarial")]
    return [Update(objective, ["reconstruction"]), Update(adversary, [TERM]),
            *(Update(objective, [term]) for term in ("adversarial", *others))]


def others_of(module: Objective | Adversary, loss: Loss) -> list[nn.Parameter]:
    """Trained parameters in a module that the engine of another one owns."""
    return list(module.model.discriminator.parameters()) if loss.adversarial and isinstance(module, Objective) else []
