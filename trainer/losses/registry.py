"""The loss terms that a recipe can name: one line for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from pydantic import model_validator
from typing_extensions import Self

from embae.datasets.fields import Strict, checked
from embae.trainer.losses.adversarial import AdversarialLoss
from embae.trainer.losses.camera_proxies import ProxyLoss
from embae.trainer.losses.circle import CircleLoss
from embae.trainer.losses.cluster_memory import MemoryLoss
from embae.trainer.losses.identity import IdentityLoss
from embae.trainer.losses.parts import PARTS
from embae.trainer.losses.reconstruction import ReconstructionLoss
from embae.trainer.losses.term import LossTerm, TermState
from embae.trainer.losses.triplet import TripletLoss

if TYPE_CHECKING:
    from embae.datasets.sampling.view import View
    from embae.trainer.losses.settings import StageSettings


class Loss(Strict):
    """The terms of a stage's loss."""

    triplet: TripletLoss | None = None
    identity: IdentityLoss | None = None
    memory: MemoryLoss | None = None
    proxies: ProxyLoss | None = None
    reconstruction: ReconstructionLoss | None = None
    adversarial: AdversarialLoss | None = None
    circle: CircleLoss | None = None

    def given(self) -> Iterator[tuple[str, LossTerm]]:
        """Key and term of each term in the recipe."""
        yield from ((name, term) for name, term in self if term is not None)

    def terms(self) -> list[str]:
        """Keys of the terms in the recipe."""
        return [name for name, _ in self.given()]

    @property
    def needs_feature_scale(self) -> bool:
        """Whether a term needs mean and deviation of the cached features."""
        return any(term.needs_feature_scale for _, term in self.given())

    @property
    def by_camera(self) -> bool:
        """Whether the cameras of the images change the loss."""
        return any(term.by_camera for _, term in self.given())

    @property
    def before_neck(self) -> list[str]:
        """Keys of the terms that see the features in front of a BNNeck."""
        return [name for name, term in self.given() if term.before_neck]

    def build_states(self, view: View, size: int) -> dict[str, TermState]:
        """The states of the terms that have one, by key.

        Args:
            view: The images of the stage.
            size: Width of an embedding.
        """
        states = {name: term.build_state(view, size) for name, term in self.given()}
        return {name: state for name, state in states.items() if state is not None}

    def steady(self) -> Self:
        """The loss as most steps of a stage compute it."""
        return self.model_copy(update={name: term.steady() for name, term in self.given()})

    def dry(self) -> Self:
        """A form of the loss whose shapes do not depend on values."""
        return self.model_copy(update={name: term.dry() for name, term in self.given()})

    def mistakes(self, stage: StageSettings) -> Iterator[str]:
        """What does not fit the stage, each as a line ``key: sentence`` with the key relative to the stage."""
        labelled = [name for name, term in self.given() if term.needs_identities]
        if labelled and not stage.data.labelled:
            yield f"loss.{labelled[0]}: needs identities; give data.P and data.K instead of data.batch"
        rules = [line for name, term in self.given() for line in term.mistakes(name, stage)]
        yield from dict.fromkeys(rules)  # terms share rules
        if stage.data.labelled and not labelled:
            yield "data: labels are not used without a loss that needs identities; give batch instead of P and K"
        yield from self._wrong_parts(stage)

    def _wrong_parts(self, stage: StageSettings) -> Iterator[str]:
        for part in PARTS:
            need = [name for name, term in self.given() if part in term.requires]
            if need and stage.use(part) == "absent":
                yield f"parts.{part}: {need[0]} needs it; it cannot be absent"
            through = [name for name, kind in TERMS.items() if part in kind.parts]
            if through and stage.use(part) == "train" and not set(through) & set(self.terms()):
                yield f"parts.{part}: only trains with a loss of {' or '.join(through)}"

    @model_validator(mode="after")
    def _not_empty(self) -> Loss:
        return checked(self, [] if self.terms() else [f"name at least one of {', '.join(TERMS)}"])


def _kind(annotation: Any) -> type[LossTerm]:
    return next(kind for kind in get_args(annotation) if kind is not type(None))


TERMS: dict[str, type[LossTerm]] = {name: _kind(field.annotation) for name, field in Loss.model_fields.items()}
CONSOLE = tuple(metric for kind in TERMS.values() for metric in kind.console)
"""Names of metrics that the console shows after the loss."""
