"""Batches, the work of a rank that they are part of, and the interface of loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embae.datasets.loading.augment import Augment
from embae.datasets.loading.draws import Draws, draw
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.sampler import Sampler, share
from embae.datasets.sampling.view import View

if TYPE_CHECKING:
    import torch


@dataclass
class Batch:
    """The part of a global batch that belongs to this rank.

    Attributes:
        inputs: `(N, 3, H, W)` normalised images, channels last in memory, or `(N, F)` backbone features; on the
            training device.
        rows: `(N,)` rows of the view.
        plan: `(B,)` rows of the whole global batch, the same on every rank.
        slots: The positions of `rows` in `plan`.
        step: The step that uses the batch.
        view: The view that the rows belong to; it has the pid, camid and dataset of an image.
    """

    inputs: torch.Tensor | Any
    rows: np.ndarray
    plan: np.ndarray
    slots: slice
    step: int
    view: View

    @property
    def dataset(self) -> np.ndarray:
        """`(N,)` number of each image's dataset in the view."""
        return self.view.locate(self.rows)[0]

    @property
    def camid(self) -> np.ndarray:
        """`(N,)` camera of each image, within its dataset."""
        return self.view.column("camid", self.rows)

    @property
    def pid(self) -> np.ndarray:
        """`(N,)` identity of each image, within its dataset; only labelled stages may use it."""
        return self.view.column("pid", self.rows)


@dataclass(frozen=True)
class Work:
    """The part of a stage's batches that one rank reads.

    Attributes:
        sampler: The global batches.
        spec: The input of the model.
        augment: How images are augmented.
        seed: The run's seed.
        stage: The stage's name.
        start: First step.
        stop: The step after the last one.
        rank: This rank.
        world_size: Number of ranks.
        accumulate: Number of parts in which a rank reads its share of a step.
        read: Height and width that images are resized to; None follows `augment`.
    """

    sampler: Sampler
    spec: ImageSpec
    augment: Augment
    seed: int
    stage: str
    start: int
    stop: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    read: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of batches: steps × parts."""
        return (self.stop - self.start) * self.accumulate

    @property
    def read_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self.read or self.augment.read_size(self.spec)

    @property
    def stored_at_read_size(self) -> bool:
        """Whether no image needs a resize."""
        return self.sampler.view.image == self.read_size

    @property
    def largest(self) -> int:
        """Most rows of one part."""
        return -(-self.sampler.batch // (self.world_size * self.accumulate))

    def rows(self, number: int) -> np.ndarray:
        """The rows of a batch, `(N,)`; `number` counts batches from `start`."""
        plan = self.sampler.plan(self.start + number // self.accumulate)
        return plan[self._slots(number, len(plan))]

    def _slots(self, number: int, rows: int) -> slice:
        part = number % self.accumulate
        return share(rows, self.rank * self.accumulate + part, self.world_size * self.accumulate)

    def part(self, number: int) -> tuple[Batch, Draws]:
        """A batch without its images, and their augmentation.

        Args:
            number: Batches before it since `start`.
        """
        step = self.start + number // self.accumulate
        plan = self.sampler.plan(step)
        slots = self._slots(number, len(plan))
        draws = draw(self.augment, self.spec, len(plan), seed=self.seed, stage=self.stage, step=step)
        batch = Batch(None, plan[slots], plan, slots, step, self.sampler.view)
        return batch, draws.take(slots)


class Loader(Protocol):
    """Yields the decoded batches of a `Work` in order, once. Closing it frees its threads and memory."""

    name: str
    """Name of the loader, for the records."""

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None: ...
