"""What a loss term is: the recipe keys of the term, and everything that the program asks of it.

A new term is one file with a subclass of `LossTerm`, and one line in `registry.py`. A login node loads a recipe in
under a second, so the file takes torch from `lazy_torch.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from embae.datasets.fields import Strict
from embae.trainer.losses.parts import PartName

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from typing_extensions import Self

    from embae.datasets.loading.batch import Batch
    from embae.datasets.sampling.view import View
    from embae.trainer.losses.settings import StageSettings

Gather: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""Gives the rows of the global batch, `(B, …)`, from this rank's `(N, …)` and B; every rank calls it."""


class LossTerm(Strict):
    """The recipe keys of one loss term, and what the program asks of the term."""

    parts: ClassVar[frozenset[PartName]] = frozenset()
    """Parts that the term goes through, in addition to backbone and embedding."""
    requires: ClassVar[frozenset[PartName]] = frozenset()
    """Parts that must not be absent."""
    constant: ClassVar[frozenset[PartName]] = frozenset()
    """Parts whose weights the term takes as constants: its gradient does not move them."""
    needs_identities: ClassVar[bool] = False
    over_global_batch: ClassVar[bool] = False
    """Whether `compute` gives the loss of the whole global batch, the same on every rank. Otherwise it gives the part
    of its own images, and the sum of all parts is the loss."""
    before_neck: ClassVar[bool] = False
    """Whether the term sees the features in front of the embedding if that is a batch norm (BNNeck)."""
    initial_features: ClassVar[bool] = False
    """Whether the term compares with features of the backbone as it was at the start of the stage."""
    by_camera: ClassVar[bool] = False
    """Whether the cameras of the images change the loss."""
    console: ClassVar[tuple[str, ...]] = ()
    """Names of metrics that the console shows; `metrics.jsonl` has all."""

    if TYPE_CHECKING:
        weight: float  # each term declares this key as its last one

    @property
    def needs_feature_scale(self) -> bool:
        """Whether the term needs mean and deviation of the cached features."""
        return False

    @abstractmethod
    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss without its weight, `()`, and further metrics by name, `()` each, of the same images.

        Args:
            inputs: This rank's images.
            state: What `build_state` returned.
        """

    def build_state(self, view: View, size: int) -> TermState | None:
        """The tensors that the term keeps from step to step, on the CPU; None for a term without any.

        Args:
            view: The images of the stage.
            size: Width of an embedding.
        """
        return None

    def mistakes(self, name: str, stage: StageSettings) -> Iterator[str]:
        """What does not fit the stage, each as a line ``key: sentence`` with the key relative to the stage.

        Args:
            name: The key of this term.
            stage: The stage that names it.
        """
        yield from ()

    def steady(self) -> Self:
        """The term as most steps of a stage compute it: without what differs in the first steps."""
        return self

    def dry(self) -> Self:
        """A form of the term whose shapes do not depend on values, to run on tensors that have none."""
        return self

    @classmethod
    def moves(cls, part: PartName) -> bool:
        """Whether the gradient of the term reaches the weights of a part."""
        return part in ("backbone", "embedding") or part in cls.parts - cls.constant


class LossInputs(Protocol):
    """Images of this rank, encoded by the model; all else is computed at request, in the precision of the model."""

    @property
    def batch(self) -> Batch:
        """The images: a part of this rank's share of the global batch."""

    @property
    def z(self) -> Tensor:
        """`(N, Z)` embeddings."""

    def steps(self, epochs: float) -> int:
        """Number of steps in that many epochs; 0 for none."""

    def identity(self) -> Tensor:
        """`(N,)` identities of the images."""

    def global_batch(self) -> tuple[Tensor, Tensor]:
        """`(B, D)` embeddings of the global batch in at least single precision, and `(B,)` its identities.

        In a model with a BNNeck these are the features in front of it.
        """

    def class_scores(self) -> Tensor:
        """`(N, C)` logits of the classifier."""

    def rebuilt(self) -> Tensor:
        """`(N, F)` features as the decoder rebuilds them."""

    def target_features(self) -> Tensor:
        """`(N, F)` features to rebuild: those of the backbone at the start of the stage, without a graph."""

    def noise_scores(self) -> Tensor:
        """`(N, 1)` logits of the discriminator, high for noise; its weights are constants."""


class TermState(ABC):
    """Tensors that a term keeps from step to step and that no optimizer moves; the same on every rank.

    Attributes:
        buffers: Module whose buffers are these tensors: the objective moves them to its device.
    """

    buffers: nn.Module

    @abstractmethod
    def start(self, view: View, rows: np.ndarray, embeddings: np.ndarray) -> None:
        """Computes the state at the start of a stage.

        Args:
            view: The images of the stage.
            rows: `(N,)` rows of the view with an identity, in an order that does not depend on identities.
            embeddings: `(N, Z)` their embeddings by the initial model; may be memory-mapped.
        """

    @abstractmethod
    def update(self, batch: Batch, broken: Tensor, gather: Gather) -> None:
        """Updates the state after a step; called once for each step, however many parts it has.

        Args:
            batch: Any part of the step's batch.
            broken: `()`, 1 if nothing may move any more.
            gather: Collects this rank's rows with those of the others.
        """

    @abstractmethod
    def full_state(self) -> dict[str, Tensor]:
        """What a checkpoint saves, on the CPU."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continues from what `full_state` returned.

        Raises:
            ValueError: It belongs to other images.
        """
