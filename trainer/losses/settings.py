"""What the rules of a loss term ask of the stage that names the term; `Stage` of the recipe answers it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from embae.trainer.losses.parts import PartName, Use


class DataSettings(Protocol):
    """The batches of a stage."""

    @property
    def P(self) -> int | dict[str, int] | None:
        """Identities of a batch, also by dataset."""

    @property
    def K(self) -> int | None:
        """Images of an identity."""

    @property
    def mix(self) -> bool:
        """Whether a batch contains several datasets."""

    @property
    def labelled(self) -> bool:
        """Whether batches are drawn by identity."""


class DeepSpeedSettings(Protocol):
    """How optimizer and weights are spread over ranks."""

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage."""


class TermInUse(Protocol):
    """A term of the stage's loss."""

    def moves(self, part: PartName) -> bool:
        """Whether the gradient of the term reaches the weights of a part."""


class TermsInUse(Protocol):
    """The terms of the stage's loss."""

    def given(self) -> Iterator[tuple[str, TermInUse]]:
        """Key and term of each."""


class StageSettings(Protocol):
    """A stage of a recipe."""

    @property
    def data(self) -> DataSettings:
        """Its batches."""

    @property
    def loss(self) -> TermsInUse | None:
        """Its loss."""

    @property
    def deepspeed(self) -> DeepSpeedSettings:
        """Its distribution over ranks."""

    @property
    def accumulate(self) -> int:
        """Parts in which a rank's share of a batch is computed."""

    @property
    def caches(self) -> bool:
        """Whether features of the backbone are computed once."""

    def use(self, part: PartName) -> Use:
        """What the stage does with a part."""

    def trained(self) -> list[PartName]:
        """Parts that train."""
