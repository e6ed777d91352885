"""Circle loss over the global batch (Sun et al. 2020, arXiv 2002.10857), in its form for pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embae.datasets.fields import Positive, Share
from embae.trainer.losses.lazy_torch import torch
from embae.trainer.losses.pairs import PairLoss
from embae.trainer.losses.precision import without_autocast
from embae.trainer.losses.term import LossInputs, TermState

if TYPE_CHECKING:
    from torch import Tensor


class CircleLoss(PairLoss):
    """Circle loss of the cosines within the global batch: pairs far from their optimum count more."""

    margin: Share = 0.25
    """m: cosines of one identity are drawn above 1 − m, those of two identities below m."""
    gamma: Positive = 256
    """What the weighted cosines are multiplied by."""
    weight: Positive = 1.0

    def compute(self, inputs: LossInputs, state: TermState | None) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings, identity = inputs.global_batch()
        with without_autocast(embeddings):
            return circle(embeddings, identity, margin=self.margin, gamma=self.gamma)


def circle(
    embeddings: Tensor, identity: Tensor, *, margin: float = 0.25, gamma: float = 256
) -> tuple[Tensor, dict[str, Tensor]]:
    """Circle loss (Sun et al. 2020, eq. 6) with the weights of eq. 5 and the optima and margins of section 3.3.

    For each anchor with positives i and negatives j, of cosines s_p and s_n to it,

        log(1 + Σ_j exp(γ α_n (s_n − m)) · Σ_i exp(−γ α_p (s_p − (1 − m)))),  α_n = [s_n + m]₊,  α_p = [1 + m − s_p]₊.

    The weights α are constants for the gradient, as in eq. 10.

    Args:
        embeddings: `(B, D)`, the global batch; of any length.
        identity: `(B,)`; each identity at least twice, and at least two identities.
        margin: m.
        gamma: γ.

    Returns:
        The mean over the anchors, and metrics: the mean cosines of positive and of negative pairs.
    """
    unit = torch.nn.functional.normalize(embeddings)
    cosine = unit @ unit.T
    same = identity[:, None] == identity[None, :]
    positive = same & ~torch.eye(len(identity), dtype=torch.bool, device=identity.device)
    fixed = cosine.detach()
    far = gamma * (fixed + margin).clamp(min=0) * (cosine - margin)
    near = -gamma * (1 + margin - fixed).clamp(min=0) * (cosine - (1 - margin))
    # log(Σ_j exp(a_j) · Σ_i exp(b_i)) as a sum of two logarithms: no exponential overflows.
    exponent = far.masked_fill(same, -torch.inf).logsumexp(1) + near.masked_fill(~positive, -torch.inf).logsumexp(1)
    metrics = {"cosine_positive": _mean(fixed, positive), "cosine_negative": _mean(fixed, ~same)}
    # log(1 + eˣ) exactly; softplus drops the 1 above x = 20.
    return torch.logaddexp(exponent, exponent.new_zeros(())).mean(), metrics


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0).sum() / mask.sum()
