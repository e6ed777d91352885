"""Identity loss: the cross-entropy of a classifier of identities."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from embae.datasets.fields import Positive, Share
from embae.trainer.losses.cross_entropy import cross_entropy
from embae.trainer.losses.parts import PartName
from embae.trainer.losses.precision import exact, without_autocast
from embae.trainer.losses.term import LossInputs, LossTerm, TermState

if TYPE_CHECKING:
    from torch import Tensor


class IdentityLoss(LossTerm):
    """Cross-entropy of the classifier over the identities of the stage's images."""

    parts: ClassVar[frozenset[PartName]] = frozenset({"classifier"})
    requires: ClassVar[frozenset[PartName]] = frozenset({"classifier"})
    needs_identities: ClassVar[bool] = True

    smoothing: Share = 0.0
    weight: Positive = 1.0

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        scores = inputs.class_scores()
        with without_autocast(scores):
            loss = cross_entropy(exact(scores), inputs.identity(), len(inputs.batch.plan), self.smoothing)
        return loss, {}
