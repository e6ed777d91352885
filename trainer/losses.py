"""The losses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_hard(embeddings: Tensor, identity: Tensor, margin: Literal["soft"] | float = "soft") -> tuple[Tensor, dict[str, Tensor]]:
    """Batch-hard triplet loss (Hermans et al. 2017, eq. 5; arXiv 1807.10591 §3.1).

    For each anchor the farthest positive and the nearest negative of the batch, plain Euclidean distance.

    Args:
        embeddings: `(B, D)`, the global batch.
        identity: `(B,)`; every identity at least twice, and at least two identities.
        margin: The hinge's margin, or ``soft`` for log(1 + exp(d_ap − d_an)).

    Returns:
        Mean over the anchors, and for the record: ``right``, the share of anchors nearer to their farthest positive
        than to their nearest negative, and the mean distances ``d_ap`` and ``d_an``.
    """
    with torch.no_grad():
        distance = torch.cdist(embeddings, embeddings)
        same = identity[:, None] == identity[None, :]
        itself = torch.eye(len(identity), dtype=torch.bool, device=identity.device)
        positive = distance.masked_fill(~same | itself, -1).argmax(1)
        negative = distance.masked_fill(same, torch.inf).argmin(1)
    # Mined without a graph, then measured on the chosen pairs alone: B×D numbers to differentiate, not B×B×D.
    d_ap = _distance(embeddings, embeddings[positive])
    d_an = _distance(embeddings, embeddings[negative])
    gap = d_ap - d_an
    loss = F.softplus(gap) if margin == "soft" else F.relu(gap + margin)
    with torch.no_grad():
        report = {"right": (gap < 0).float().mean(), "d_ap": d_ap.mean(), "d_an": d_an.mean()}
    return loss.mean(), report


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # The constant keeps the gradient finite where two embeddings are equal.
    return ((a - b).square().sum(1) + 1e-12).sqrt()


def reconstruction(rebuilt: Tensor, features: Tensor, rows: int) -> Tensor:
    """This rank's part of the mean squared error over the global batch and the features (arXiv 1807.10591 §4.2).

    Args:
        rebuilt: `(N, F)`, the decoder's output.
        features: `(N, F)`, raw pooled features of the backbone in eval mode, detached.
        rows: Images in the global batch.
    """
    return (rebuilt - features).square().sum() / (rows * features.shape[1])
