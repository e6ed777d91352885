"""The losses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Margin = Literal["soft"] | float
ANCHORS = 1024
"""Mined at a time, so that memory grows with the batch and not with its square."""


def batch_hard(embeddings: Tensor, identity: Tensor, margin: Margin = "soft") -> tuple[Tensor, dict[str, Tensor]]:
    """Batch-hard triplet loss (Hermans et al. 2017, eq. 5; arXiv 1807.10591 §3.1).

    For each anchor the farthest positive and the nearest negative of the batch, plain Euclidean distance.

    Args:
        embeddings: `(B, D)`, the global batch.
        identity: `(B,)`; every identity at least twice, and at least two identities.
        margin: The hinge's margin, or ``soft`` for log(1 + exp(d_ap − d_an)).

    Returns:
        Mean over the anchors, and for the record: ``right``, the share of anchors nearer to their farthest positive
        than to their nearest negative, and the mean distances ``d_ap`` and ``d_an`` to these.
    """
    with torch.no_grad():
        mined = [_hardest(torch.cdist(anchors, embeddings), identity, number * ANCHORS)
                 for number, anchors in enumerate(embeddings.split(ANCHORS))]
        positive, negative = map(torch.cat, zip(*mined, strict=True))
    # Mined without a graph, then measured on the chosen pairs alone: B×D numbers to differentiate, not B×B×D.
    d_ap = _distance(embeddings, embeddings[positive])
    d_an = _distance(embeddings, embeddings[negative])
    return _margin(d_ap - d_an, margin).mean(), _report(d_ap, d_an)


def batch_all(embeddings: Tensor, identity: Tensor, margin: Margin = "soft") -> tuple[Tensor, dict[str, Tensor]]:
    """Batch-all triplet loss (Hermans et al. 2017, eq. 6): every triplet of the batch.

    Weaker than batch-hard in the end, but from random weights it starts where batch-hard collapses. Takes B³ numbers.

    Args:
        embeddings: `(B, D)`, the global batch.
        identity: `(B,)`; every identity at least twice, and at least two identities.
        margin: As for `batch_hard`.

    Returns:
        Mean over the triplets that count (with a hinge, those with a loss), and the report of `batch_hard`.
    """
    distance = _distance(embeddings[:, None], embeddings[None, :])
    same = identity[:, None] == identity[None, :]
    others = same & ~torch.eye(len(identity), dtype=torch.bool, device=identity.device)
    triplet = others[:, :, None] & ~same[:, None, :]
    losses = _margin((distance[:, :, None] - distance[:, None, :])[triplet], margin)
    counted = len(losses) if margin == "soft" else (losses > 0).sum().clamp(min=1)
    with torch.no_grad():
        positive, negative = _hardest(distance, identity)
        anchor = torch.arange(len(identity), device=identity.device)
    return losses.sum() / counted, _report(distance[anchor, positive], distance[anchor, negative])


MINING = {"batch-hard": batch_hard, "batch-all": batch_all}


def _hardest(distance: Tensor, identity: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Farthest positive and nearest negative of some anchors, given their distances `(A, B)`: two `(A,)`."""
    rows = torch.arange(first, first + len(distance), device=identity.device)
    other = identity[rows, None] != identity[None, :]
    itself = rows[:, None] == torch.arange(len(identity), device=identity.device)
    return distance.masked_fill(other | itself, -1).argmax(1), distance.masked_fill(~other, torch.inf).argmin(1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # The constant keeps the gradient finite where two embeddings are equal.
    return ((a - b).square().sum(-1) + 1e-12).sqrt()


def _margin(gap: Tensor, margin: Margin) -> Tensor:
    return F.softplus(gap) if margin == "soft" else F.relu(gap + margin)


def _report(d_ap: Tensor, d_an: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"right": (d_ap < d_an).float().mean(), "d_ap": d_ap.mean(), "d_an": d_an.mean()}


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
