"""Camera-aware proxies: a memory with an entry for each camera of an identity.

This is CAP (Wang et al. 2021, arXiv 2012.10674).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from embae.datasets.fields import Count
from embae.datasets.sampling.view import labelled_rows
from embae.trainer.losses.cluster_memory import ClusterMemory, MemoryLoss
from embae.trainer.losses.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

    from embae.datasets.sampling.view import View

_INTER_CAMERA = 0.5  # weight of CAP's inter-camera loss, λ in the paper


class ProxyLoss(MemoryLoss):
    """As the memory loss, with a unit vector for each camera that an identity is seen by (Wang et al. 2021)."""

    by_camera: ClassVar[bool] = True
    console: ClassVar[tuple[str, ...]] = ()
    near_metric: ClassVar[str] = "near_proxies"

    hard_negatives: Count = 50
    """Number of proxies of other identities that are the negatives."""

    def build_state(self, view: View, size: int) -> CameraProxies:
        return CameraProxies(self, view, size)


class CameraProxies(ClusterMemory):
    """A memory with an entry for each camera that an identity is seen by.

    The loss is that of CAP: L_Intra, the loss of `ClusterMemory` among the entries of the image's own camera, plus
    0.5 · L_Inter, `inter_camera`. Both are means over images here; the authors' code takes means within each camera and
    adds these up.

    Attributes:
        buffers: As of `ClusterMemory`, and `camera`, `(E,)`: the number of the camera of each entry.
    """

    def __init__(self, keys: ProxyLoss, view: View, size: int):
        cameras = np.unique(view.column("camid", labelled_rows(view)))
        super().__init__(keys, view, size, cameras)
        self._hard_negatives = keys.hard_negatives
        self.buffers.register_buffer("camera", torch.from_numpy(self._pair_codes % len(cameras)))
        self._same_identity = _same_identity(self._pair_codes // len(cameras))

    def _compare(
        self, scores: Tensor, target: Tensor, entry: np.ndarray, block: slice, rows: int
    ) -> tuple[Tensor, Tensor]:
        from embae.datasets.loading.to_device import to_device

        camera = self.buffers.get_buffer("camera")[block]
        same_camera = scores.masked_fill(camera != camera[target][:, None], -torch.inf)
        loss, near = super()._compare(same_camera, target, entry, block, rows)
        same = to_device(self._same_identity[entry] - block.start, scores.device)
        return loss + _INTER_CAMERA * inter_camera(scores, target, same, self._hard_negatives, rows), near


def inter_camera(scores: Tensor, target: Tensor, same: Tensor, hard_negatives: int, rows: int) -> Tensor:
    """This rank's part of the mean over the global batch of the inter-camera loss of camera-aware proxies.

    Wang et al. 2021 (arXiv 2012.10674), L_Inter. An image has positives P, the entries of its identity on other
    cameras, and negatives Q, the nearest entries of other identities on any camera. Its loss is the mean over p ∈ P of
    −log(exp(s_p) / Σ_{u ∈ P ∪ Q} exp(s_u)). An image without positives adds nothing. As in the paper, an image's own
    entry is not in P; the authors' code counts it in P.

    Args:
        scores: `(N, E)` similarities of this rank's images and all entries, divided by the temperature.
        target: `(N,)` the entry of each image.
        same: `(N, M)` the entries of its identity, filled up with its own entry.
        hard_negatives: Largest number of entries in Q.
        rows: Number of images in the global batch.
    """
    positive = same != target[:, None]
    with torch.no_grad():  # mine without a graph, then measure the chosen entries alone
        value, negative = scores.scatter(1, same, -torch.inf).topk(min(hard_negatives, scores.shape[1]))
    near, far = scores.gather(1, same), scores.gather(1, negative)
    both = torch.cat([near.masked_fill(~positive, -torch.inf), far.masked_fill(value.isneginf(), -torch.inf)], 1)
    count = positive.sum(1)
    mean = near.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, both.logsumexp(1) - mean, 0).sum() / rows


def _same_identity(identity: np.ndarray) -> np.ndarray:
    """The entries of each entry's identity, filled up with the entry itself: `(E, M)`.

    Args:
        identity: `(E,)` that of each entry, rising.
    """
    first, past = (np.searchsorted(identity, identity, side) for side in ("left", "right"))
    places = first[:, None] + np.arange(int((past - first).max()))
    return np.where(places < past[:, None], places, np.arange(len(identity))[:, None])
