"""Cross-entropy as a rank's part of a mean over the global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embae.trainer.losses.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(scores: Tensor, identity: Tensor, rows: int, smoothing: float = 0.0) -> Tensor:
    """This rank's part of the mean cross-entropy over the global batch.

    Args:
        scores: `(N, C)` logits of this rank's images.
        identity: `(N,)` their classes.
        rows: Number of images in the global batch.
        smoothing: Weight that is spread evenly over all classes (Szegedy et al. 2016).
    """
    loss = torch.nn.functional.cross_entropy(scores, identity, label_smoothing=smoothing, reduction="sum")
    return loss / rows
