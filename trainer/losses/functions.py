"""The losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction(rebuilt: Tensor, features: Tensor, rows: int) -> Tensor:
    """This rank's part of the mean squared error over the global batch and the features (arXiv 1807.10591 §4.2).

    Args:
        rebuilt: `(N, F)`, the decoder's output.
        features: `(N, F)`, raw pooled features of the backbone in eval mode, detached.
        rows: Images in the global batch.
    """
    return (rebuilt - features).square().sum() / (rows * features.shape[1])


def cross_entropy(scores: Tensor, identity: Tensor, rows: int, smoothing: float = 0.0) -> Tensor:
    """This rank's part of the mean cross-entropy over the global batch.

    Args:
        scores: `(N, C)` logits of this rank's images.
        identity: `(N,)` their classes.
        rows: Images in the global batch.
        smoothing: Weight spread evenly over all classes (Szegedy et al. 2016).
    """
    return F.cross_entropy(scores, identity, label_smoothing=smoothing, reduction="sum") / rows


def inter_camera(scores: Tensor, own: Tensor, same: Tensor, hardest: int, rows: int) -> Tensor:
    """This rank's part of the mean over the global batch of the inter-camera loss of camera-aware proxies.

    Wang et al. 2021 (arXiv 2012.10674), L_Inter: of an image with positives P, the entries of its identity on other
    cameras, and negatives Q, the nearest entries of other identities on any camera, the mean over p ∈ P of
    −log(exp(s_p) / Σ_{u ∈ P ∪ Q} exp(s_u)). An image without positives adds nothing. As in the paper, an image's own
    entry is not among them; the authors' code counts it in P.

    Args:
        scores: `(N, E)` similarities of this rank's images and all entries, divided by the temperature.
        own: `(N,)` the entry of each image.
        same: `(N, M)` the entries of its identity, filled up with its own one.
        hardest: Entries in Q, at most.
        rows: Images in the global batch.
    """
    positive = same != own[:, None]
    with torch.no_grad():  # mined without a graph, then measured on the chosen entries alone
        value, negative = scores.scatter(1, same, -torch.inf).topk(min(hardest, scores.shape[1]))
    near, far = scores.gather(1, same), scores.gather(1, negative)
    both = torch.cat([near.masked_fill(~positive, -torch.inf), far.masked_fill(value.isneginf(), -torch.inf)], 1)
    count = positive.sum(1)
    mean = near.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, both.logsumexp(1) - mean, 0).sum() / rows


def real(logits: Tensor, rows: int) -> Tensor:
    """This rank's part of the mean of −log p(noise) over the global batch (Makhzani et al. 2015).

    Args:
        logits: `(N, 1)` of the discriminator, high for noise.
        rows: Images in the global batch.
    """
    return F.softplus(-logits).sum() / rows
