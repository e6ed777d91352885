"""Cluster memory: a unit vector for each identity, which embeddings are drawn to and which follows them.

Adaptation to pseudo-labels trains by a memory in place of a classifier (SpCL, Ge et al. 2020, arXiv 2006.02713; Cluster
Contrast, Dai et al. 2021, arXiv 2103.11568). The entries start as means of embeddings, so nothing has to be learned
from random weights in every round, and a step moves the entries of its batch without an optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from embae.datasets.fields import Positive, Share
from embae.datasets.sampling.view import labelled_rows
from embae.trainer.losses.cross_entropy import cross_entropy
from embae.trainer.losses.lazy_torch import torch
from embae.trainer.losses.precision import exact, without_autocast
from embae.trainer.losses.term import Gather, LossInputs, LossTerm, TermState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from embae.datasets.loading.batch import Batch
    from embae.datasets.sampling.view import View
    from embae.trainer.losses.settings import StageSettings

_AT_ONCE = 256  # entries whose images are averaged at a time


class MemoryLoss(LossTerm):
    """Cross-entropy of the cosines to a memory, which has a unit vector for each identity."""

    needs_identities: ClassVar[bool] = True
    console: ClassVar[tuple[str, ...]] = ("near_memory",)
    near_metric: ClassVar[str] = "near_memory"
    """Name of the share of images that are nearest to their own entry."""

    temperature: Positive = 0.05
    """What cosines are divided by."""
    momentum: Share = 0.1
    """The part of an entry that stays if a batch has images of it: at 0 these replace it, near 1 it hardly moves."""
    update: Literal["mean", "hard"] = "mean"
    """What an entry moves towards: the mean of its images in the batch, or the image least like it."""
    weight: Positive = 1.0

    def build_state(self, view: View, size: int) -> ClusterMemory:
        return ClusterMemory(self, view, size)

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(state, ClusterMemory)
        with without_autocast(inputs.z):
            loss, near = state.loss(exact(inputs.z), inputs.batch)
        return loss, {self.near_metric: near}

    def mistakes(self, name: str, stage: StageSettings) -> Iterator[str]:
        data = stage.data
        if 1 in (data.P.values() if isinstance(data.P, dict) else [data.P]):
            yield "data.P: the memory needs at least 2"
        if data.mix:
            yield "data.mix: the memory tells apart the identities of one dataset at a time; leave it out"


class ClusterMemory(TermState):
    """A memory with an entry for each identity of a view.

    The loss of an image is the ClusterNCE loss of Cluster Contrast: cross-entropy of the cosines of its embedding to
    the entries, divided by the temperature, with its own entry as its class. The entries are those of the dataset of
    the batch; SpCL takes those of all datasets together. Batches contain one dataset, so telling datasets apart, which
    is easy and useless, is not part of the task.

    Args:
        keys: Those of the recipe.
        view: Images; persons with an identity are trained on.
        size: Width of an embedding.
        cameras: `(C,)` camera numbers, rising, for an entry for each identity and camera; None ignores cameras.

    Attributes:
        buffers: Its buffer `entries` is `(E, size)`: unit vectors by dataset, identity and camera; zeros until they are
            started or restored. The same on every rank.
    """

    def __init__(self, keys: MemoryLoss, view: View, size: int, cameras: np.ndarray | None = None):
        self.keys = keys
        self._cameras = cameras
        self._cameras_each = 1 if cameras is None else len(cameras)
        self._pair_codes = np.unique(self._pair_code(view, labelled_rows(view)))
        sizes = np.cumsum([0, *map(len, view.identities)])
        self._dataset_starts = np.searchsorted(self._pair_codes, sizes * self._cameras_each)
        self._step_embeddings: list[Tensor] = []
        self.buffers = torch.nn.Module()
        self.buffers.register_buffer("entries", torch.zeros(len(self._pair_codes), size))

    @property
    def entries(self) -> Tensor:
        """`(E, size)` unit vectors."""
        return self.buffers.get_buffer("entries")

    def _pair_code(self, view: View, rows: np.ndarray) -> np.ndarray:
        """A number for each pair of identity and camera, rising by identity: `(N,)`."""
        identity = view.identity(rows)
        if self._cameras is None:
            return identity
        return identity * self._cameras_each + np.searchsorted(self._cameras, view.column("camid", rows))

    def entry(self, view: View, rows: np.ndarray) -> np.ndarray:
        """The entry of each image, `(N,)`."""
        return np.searchsorted(self._pair_codes, self._pair_code(view, rows))

    def start(self, view: View, rows: np.ndarray, embeddings: np.ndarray) -> None:
        """Makes each entry the mean of the unit embeddings of its images, at unit length."""
        entry = self.entry(view, rows)
        order = np.argsort(entry, kind="stable")
        starts = np.searchsorted(entry[order], np.arange(len(self.entries) + 1))
        for first in range(0, len(self.entries), _AT_ONCE):
            bounds = starts[first:first + _AT_ONCE + 1]
            z = embeddings[order[bounds[0]:bounds[-1]]].astype(np.float64)
            sums = np.add.reduceat(z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12), bounds[:-1] - bounds[0])
            unit = torch.nn.functional.normalize(torch.from_numpy(sums))
            self.entries[first:first + _AT_ONCE] = unit.to(self.entries)

    def loss(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """This rank's part of the mean loss over the global batch, and of the share of images nearest to their entry.

        Args:
            z: `(N, size)` embeddings of a part of this rank's share; stored without their graph for `update`.
            batch: The part.
        """
        from embae.datasets.loading.to_device import to_device

        unit = torch.nn.functional.normalize(z)
        self._step_embeddings.append(unit.detach())
        dataset = int(batch.view.locate(batch.plan[:1])[0][0])
        block = slice(self._dataset_starts[dataset], self._dataset_starts[dataset + 1])
        entry = self.entry(batch.view, batch.rows)
        target = to_device(entry - block.start, z.device)
        scores = unit @ self.entries[block].T / self.keys.temperature
        return self._compare(scores, target, entry, block, len(batch.plan))

    def _compare(
        self, scores: Tensor, target: Tensor, entry: np.ndarray, block: slice, rows: int
    ) -> tuple[Tensor, Tensor]:
        """As `loss`.

        Args:
            scores: `(N, M)` cosines to the entries of the batch's dataset, divided by the temperature.
            target: `(N,)` the entry of each image, counted within the dataset.
            entry: `(N,)` the same, counted within all.
            block: The entries of the dataset.
            rows: Number of images in the global batch.
        """
        return cross_entropy(scores, target, rows), (scores.detach().argmax(1) == target).sum() / rows

    def update(self, batch: Batch, broken: Tensor, gather: Gather) -> None:
        """Moves the entries that the global batch has images of, after a step.

        c ← m·c + (1 − m)·q, then to unit length. q is the mean of the entry's images in the batch (SpCL's update of
        class centroids), or the image least like the entry (Cluster Contrast's hardest query).
        """
        from embae.datasets.loading.to_device import to_device

        with torch.no_grad():
            embeddings = gather(torch.cat(self._step_embeddings), len(batch.plan))
            self._step_embeddings.clear()
            present, entry = np.unique(self.entry(batch.view, batch.plan), return_inverse=True)
            # As a matrix: on a GPU, sums by index are not the same bit for bit, and ranks would drift apart.
            member = to_device(entry == np.arange(len(present))[:, None], embeddings.device)
            places = to_device(present, embeddings.device)
            old = self.entries[places]
            if self.keys.update == "hard":
                query = embeddings[(old @ embeddings.T).masked_fill(~member, torch.inf).argmin(1)]
            else:
                query = member.to(embeddings.dtype) @ embeddings / member.sum(1, keepdim=True)
            new = torch.nn.functional.normalize(self.keys.momentum * old + (1 - self.keys.momentum) * query)
            self.entries.index_copy_(0, places, torch.where(broken > 0, old, new))

    def full_state(self) -> dict[str, Tensor]:
        return {"entries": self.entries.cpu().clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        if {name: value.shape for name, value in state.items()} != {"entries": self.entries.shape}:
            raise ValueError("contains no memory of this stage's identities")
        self.entries.copy_(state["entries"])
