"""Reconstruction loss: the decoder rebuilds the features of the backbone from [z, v]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from embae.datasets.fields import Flag, Positive
from embae.trainer.losses.parts import PartName
from embae.trainer.losses.precision import without_autocast
from embae.trainer.losses.term import LossInputs, LossTerm, TermState

if TYPE_CHECKING:
    from torch import Tensor

    from embae.trainer.losses.settings import StageSettings


class ReconstructionLoss(LossTerm):
    """Mean squared error between the decoder's output and the backbone's features."""

    parts: ClassVar[frozenset[PartName]] = frozenset({"nuisance", "decoder"})
    # Without the nuisance, z alone is decoded.
    requires: ClassVar[frozenset[PartName]] = frozenset({"embedding", "decoder"})
    initial_features: ClassVar[bool] = True

    standardised: Flag = False
    """Features less their mean, divided by their deviation over the stage's images: each then counts alike."""
    weight: Positive = 1.0

    @property
    def needs_feature_scale(self) -> bool:
        return self.standardised

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        target = inputs.target_features()
        rebuilt = inputs.rebuilt()
        with without_autocast(target):
            return reconstruction(rebuilt.to(target.dtype), target, len(inputs.batch.plan)), {}

    def mistakes(self, name: str, stage: StageSettings) -> Iterator[str]:
        if self.standardised and not stage.caches:
            yield (f"loss.{name}.standardised: needs cached features to take means of; freeze the backbone, leave "
                   "cache_features on, and augment by a flip at most")


def reconstruction(rebuilt: Tensor, features: Tensor, rows: int) -> Tensor:
    """This rank's part of the mean squared error over the global batch and the features (arXiv 1807.10591 §4.2).

    Args:
        rebuilt: `(N, F)`, the decoder's output.
        features: `(N, F)`, raw pooled features of the backbone in eval mode, detached.
        rows: Number of images in the global batch.
    """
    return (rebuilt - features).square().sum() / (rows * features.shape[1])
