"""Triplet loss over the global batch (Hermans et al. 2017): batch-hard and batch-all."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from embae.datasets.fields import Length, Positive
from embae.trainer.losses.lazy_torch import torch
from embae.trainer.losses.pairs import PairLoss
from embae.trainer.losses.precision import without_autocast
from embae.trainer.losses.term import LossInputs, TermState

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

Margin = Literal["soft"] | float

ANCHORS = 1024
"""Anchors mined at a time, so that memory grows with the batch and not with its square."""


class TripletLoss(PairLoss):
    """Triplet loss over the global batch; a numeric margin gives the hinge, ``soft`` log(1 + exp(d_ap − d_an))."""

    console: ClassVar[tuple[str, ...]] = ("right",)

    mining: Literal["batch-hard", "batch-all"] = "batch-hard"
    margin: Literal["soft"] | Positive = "soft"
    batch_all_epochs: Length = 0.0
    """How long batch-all mines first: from random weights batch-hard collapses."""
    weight: Positive = 1.0

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings, identity = inputs.global_batch()
        starts = inputs.batch.step < inputs.steps(self.batch_all_epochs)
        mine = batch_all if starts or self.mining == "batch-all" else batch_hard
        with without_autocast(embeddings):
            return mine(embeddings, identity, self.margin)

    def steady(self) -> Self:
        return self.model_copy(update={"batch_all_epochs": 0.0})

    def dry(self) -> Self:
        return self.model_copy(update={"mining": "batch-hard", "batch_all_epochs": 0.0})


def batch_hard(embeddings: Tensor, identity: Tensor, margin: Margin = "soft") -> tuple[Tensor, dict[str, Tensor]]:
    """Batch-hard triplet loss (Hermans et al. 2017, eq. 5; arXiv 1807.10591 §3.1).

    For each anchor, the farthest positive and the nearest negative of the batch by plain Euclidean distance.

    Args:
        embeddings: `(B, D)`, the global batch.
        identity: `(B,)`; each identity at least twice, and at least two identities.
        margin: Margin of the hinge, or ``soft`` for log(1 + exp(d_ap − d_an)).

    Returns:
        The mean over the anchors, and metrics: ``right``, the share of anchors that are nearer to their farthest
        positive than to their nearest negative, and the mean distances to these, ``d_ap`` and ``d_an``.
    """
    with torch.no_grad():
        mined = [_hardest(torch.cdist(anchors, embeddings), identity, number * ANCHORS)
                 for number, anchors in enumerate(embeddings.split(ANCHORS))]
        positive, negative = map(torch.cat, zip(*mined, strict=True))
    # Mine without a graph, then measure the chosen pairs alone: B×D numbers to differentiate, not B×B×D.
    d_ap = _distance(embeddings, embeddings[positive])
    d_an = _distance(embeddings, embeddings[negative])
    return _margin(d_ap - d_an, margin).mean(), _report(d_ap, d_an)


def batch_all(embeddings: Tensor, identity: Tensor, margin: Margin = "soft") -> tuple[Tensor, dict[str, Tensor]]:
    """Batch-all triplet loss (Hermans et al. 2017, eq. 6): every triplet of the batch.

    The result is worse than that of batch-hard, but from random weights it trains where batch-hard collapses. It takes
    memory for B³ numbers.

    Args:
        embeddings: `(B, D)`, the global batch.
        identity: `(B,)`; each identity at least twice, and at least two identities.
        margin: As for `batch_hard`.

    Returns:
        The mean over the triplets that count (with a hinge, those with a loss above 0), and the metrics of
        `batch_hard`.
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


def _hardest(distance: Tensor, identity: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Farthest positive and nearest negative of anchors, given their distances `(A, B)`: two `(A,)`.

    The anchors are the rows of the batch from `first` on.
    """
    rows = torch.arange(first, first + len(distance), device=identity.device)
    other = identity[rows, None] != identity[None, :]
    itself = rows[:, None] == torch.arange(len(identity), device=identity.device)
    return distance.masked_fill(other | itself, -1).argmax(1), distance.masked_fill(~other, torch.inf).argmin(1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # The constant keeps the gradient finite where two embeddings are equal.
    return ((a - b).square().sum(-1) + 1e-12).sqrt()


def _margin(gap: Tensor, margin: Margin) -> Tensor:
    return torch.nn.functional.softplus(gap) if margin == "soft" else torch.nn.functional.relu(gap + margin)


def _report(d_ap: Tensor, d_an: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"right": (d_ap < d_an).float().mean(), "d_ap": d_ap.mean(), "d_an": d_an.mean()}
