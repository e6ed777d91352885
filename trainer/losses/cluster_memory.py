"""A memory of the identities that a stage trains on: unit vectors that embeddings are drawn to, and that follow them.

What today's adaptation to pseudo-labels trains by, in place of a classifier (SpCL, Ge et al. 2020, arXiv 2006.02713;
Cluster Contrast, Dai et al. 2021, arXiv 2103.11568; a memory by camera: CAP, Wang et al. 2021, arXiv 2012.10674). The
entries begin as the means of embeddings, so nothing has to be learned from random weights in every round, and a step
moves those of its batch without an optimizer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.view import PERSON, View
from embae.trainer.losses import functions as losses
from embae.trainer.recipe.losses import Loss, Memory, Proxies
from embae.trainer.runtime.distributed import gather_rows

_ACROSS = 0.5  # weight of CAP's inter-camera loss, λ in the paper


class ClusterMemory(nn.Module):
    """An entry for each identity of a view, or, as proxies, for each camera that an identity is seen by.

    The loss of an image is the ClusterNCE loss of Cluster Contrast: cross-entropy of its embedding's cosines to the
    entries, divided by the temperature, with its own entry as its class. The entries are those of the batch's own
    dataset; SpCL takes those of all datasets together. Batches are of one dataset, so that telling datasets apart,
    which is easy and of no use, is no part of the task.

    With an entry for each camera, the loss is CAP's: L_Intra, the same among the entries of the image's own camera,
    + 0.5 · L_Inter (see `losses.inter_camera`). Both are means over images here; the authors' code takes means within
    each camera and adds these up.

    Args:
        keys: The recipe's.
        view: Images whose persons with an identity are trained on.
        size: Of an embedding.

    Attributes:
        entries: `(E, size)` unit vectors by dataset, identity and camera; zeros until they are filled or restored.
            Alike on every rank.
    """

    entries: Tensor
    camera: Tensor

    def __init__(self, keys: Memory, view: View, size: int):
        super().__init__()
        self._keys, self._seen = keys, list[Tensor]()
        rows = persons(view)
        by_camera = isinstance(keys, Proxies)
        # One number stands for all cameras where they are not told apart.
        self._camids = np.unique(view.column("camid", rows)) if by_camera else None
        self._cameras = 1 if self._camids is None else len(self._camids)
        self._codes = np.unique(self._code(view, rows))
        sizes = np.cumsum([0, *map(len, view.identities)])
        self._starts = np.searchsorted(self._codes, sizes * self._cameras)
        self.register_buffer("entries", torch.zeros(len(self._codes), size))
        if by_camera:
            self.register_buffer("camera", torch.from_numpy(self._codes % self._cameras))
            self._same = _same(self._codes // self._cameras)

    def _code(self, view: View, rows: np.ndarray) -> np.ndarray:
        """A number for each pair of identity and camera, rising by identity: `(N,)`."""
        identity = view.identity(rows)
        if self._camids is None:
            return identity
        return identity * self._cameras + np.searchsorted(self._camids, view.column("camid", rows))

    def entry(self, view: View, rows: np.ndarray) -> np.ndarray:
        """The entry of each image, `(N,)`."""
        return np.searchsorted(self._codes, self._code(view, rows))

    def forward(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss's mean over the global batch, and of the share of images nearest to their own
        entry, of those of their camera where these are told apart.

        Args:
            z: `(N, size)` embeddings of a part of this rank's share; kept, without their graph, for `update`.
            batch: The part.
        """
        unit, rows = F.normalize(z), len(batch.plan)
        self._seen.append(unit.detach())
        dataset = int(batch.view.locate(batch.plan[:1])[0][0])
        some = slice(self._starts[dataset], self._starts[dataset + 1])
        number = self.entry(batch.view, batch.rows)
        own = to_device(number - some.start, z.device)
        scores = unit @ self.entries[some].T / self._keys.temperature
        among = scores
        if self._camids is not None:
            camera = self.camera[some]
            among = scores.masked_fill(camera != camera[own][:, None], -torch.inf)
        loss = losses.cross_entropy(among, own, rows)
        if isinstance(self._keys, Proxies):
            same = to_device(self._same[number] - some.start, z.device)
            loss = loss + _ACROSS * losses.inter_camera(scores, own, same, self._keys.hard_negatives, rows)
        return loss, (among.detach().argmax(1) == own).sum() / rows

    @torch.no_grad()
    def update(self, batch: Batch, broken: Tensor) -> None:
        """Moves the entries that the global batch has images of, after a step; once, whatever the parts.

        c ← m·c + (1 − m)·q, then to unit length. q is the mean of the entry's images in the batch (SpCL's update of
        class centroids), or the one least like the entry (Cluster Contrast's hardest query).

        Args:
            batch: Any part of the step's batch.
            broken: `()`, 1 where nothing may move any more.
        """
        everyone = gather_rows(torch.cat(self._seen), len(batch.plan))
        self._seen.clear()
        which, owner = np.unique(self.entry(batch.view, batch.plan), return_inverse=True)
        # As a matrix: sums by index are not the same bit for bit on a GPU, and ranks would drift apart.
        member = to_device(owner == np.arange(len(which))[:, None], everyone.device)
        places = to_device(which, everyone.device)
        old = self.entries[places]
        if self._keys.update == "hard":
            to = everyone[(old @ everyone.T).masked_fill(~member, torch.inf).argmin(1)]
        else:
            to = member.to(everyone.dtype) @ everyone / member.sum(1, keepdim=True)
        new = F.normalize(self._keys.momentum * old + (1 - self._keys.momentum) * to)
        self.entries.index_copy_(0, places, torch.where(broken > 0, old, new))

    def whole(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the CPU."""
        return {"entries": self.entries.cpu().clone()}

    def restore(self, found: dict[str, Tensor]) -> None:
        """Goes on with what `whole` gave.

        Raises:
            ValueError: It is of other identities.
        """
        if {name: value.shape for name, value in found.items()} != {"entries": self.entries.shape}:
            raise ValueError("holds no memory of this stage's identities")
        self.entries.copy_(found["entries"])


def persons(view: View) -> np.ndarray:
    """The rows of a view that a labelled stage reads: persons with an identity, `(N,)` rising."""
    ranges = np.concatenate(view.identities)[:, :2]
    rows = np.concatenate([np.arange(first, past) for first, past in ranges.tolist()])
    return rows[view.column("role", rows) == PERSON]


def _same(identity: np.ndarray) -> np.ndarray:
    """The entries of each entry's identity, filled up with itself: `(E, M)`.

    Args:
        identity: `(E,)` of each entry, rising.
    """
    first, past = (np.searchsorted(identity, identity, side) for side in ("left", "right"))
    places = first[:, None] + np.arange(int((past - first).max()))
    return np.where(places < past[:, None], places, np.arange(len(identity))[:, None])


def memories(loss: Loss, view: View, size: int) -> dict[str, ClusterMemory]:
    """The memories of a stage's loss, by term."""
    kept = {"memory": loss.memory, "proxies": loss.proxies}
    return {term: ClusterMemory(keys, view, size) for term, keys in kept.items() if keys}
