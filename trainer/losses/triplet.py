"""Triplet losses over the global batch."""

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
