"""Cross-entropy against its formula, in parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embae.datasets.sampling.sampler import share
from embae.trainer.losses.cross_entropy import cross_entropy


def _embeddings(count: int = 12, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_cross_entropy_is_the_formula_whatever_the_parts(smoothing: float, parts: int) -> None:
    """Szegedy et al. 2016: the label gets 1 − ε, and all classes, the label's too, get ε / C more."""
    scores, label = _embeddings(7, 5), [0, 4, 2, 2, 1, 0, 4]
    total = 0.0
    for row, own in zip(scores.tolist(), label, strict=True):
        log_sum = math.log(sum(math.exp(score) for score in row))
        wanted = [smoothing / 5 + (1 - smoothing) * (number == own) for number in range(5)]
        total -= sum(weight * (score - log_sum) for weight, score in zip(wanted, row, strict=True))
    slices = [share(7, part, parts) for part in range(parts)]  # of eight parts one is empty
    found = [cross_entropy(scores[own], torch.tensor(label)[own], 7, smoothing) for own in slices]
    assert sum(found).item() == pytest.approx(total / 7, rel=1e-12)  # type: ignore[union-attr]
