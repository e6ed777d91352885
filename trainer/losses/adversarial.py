"""Adversarial loss: the code [z, v] is moved so that a discriminator takes it for noise (Makhzani et al. 2015).

Updates of the encoders by this loss take turns with updates of the discriminator: `training/adversarial_updates.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from embae.datasets.fields import Positive
from embae.trainer.losses.lazy_torch import torch
from embae.trainer.losses.parts import PartName
from embae.trainer.losses.precision import exact, without_autocast
from embae.trainer.losses.term import LossInputs, LossTerm, TermState

if TYPE_CHECKING:
    from torch import Tensor

    from embae.trainer.losses.settings import StageSettings


class AdversarialLoss(LossTerm):
    """The code [z, v] is made to look like noise to a discriminator; the stage's terms then update in turn."""

    parts: ClassVar[frozenset[PartName]] = frozenset({"nuisance", "discriminator"})
    requires: ClassVar[frozenset[PartName]] = frozenset({"discriminator"})
    constant: ClassVar[frozenset[PartName]] = frozenset({"discriminator"})

    weight: Positive = 1.0

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        scores = inputs.noise_scores()
        with without_autocast(scores):
            return taken_for_noise(exact(scores), len(inputs.batch.plan)), {}

    def mistakes(self, name: str, stage: StageSettings) -> Iterator[str]:
        terms = dict(stage.loss.given()) if stage.loss else {}
        if stage.deepspeed.zero_stage:
            yield "deepspeed.zero_stage: updates in turn leave the other parts unmoved at stage 0 only; set it to 0"
        if stage.accumulate > 1:
            yield "accumulate: must be 1 where updates take turns"
        if "reconstruction" not in terms:
            yield f"loss.{name}: goes with reconstruction"
        if stage.use("discriminator") == "frozen":
            yield f"parts.discriminator: is frozen, but {name} trains it; set it to train"
        for key, term in terms.items():
            if not any(term.moves(part) for part in stage.trained()):
                yield f"loss.{key}: has separate updates here, and none of the parts that it goes through trains"


def taken_for_noise(scores: Tensor, rows: int) -> Tensor:
    """This rank's part of the mean of −log p(noise) over the global batch (Makhzani et al. 2015).

    Args:
        scores: `(N, 1)` logits of the discriminator, high for noise.
        rows: Number of images in the global batch.
    """
    return torch.nn.functional.softplus(-scores).sum() / rows
