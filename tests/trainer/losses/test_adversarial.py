"""The loss of codes that are taken for noise against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embae.datasets.sampling.sampler import share
from embae.trainer.losses.adversarial import taken_for_noise


def _embeddings(count: int = 12, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_it_is_the_mean_log_probability_of_noise(parts: int) -> None:
    logits = 3 * _embeddings(7, 1)
    wanted = sum(-math.log(1 / (1 + math.exp(-value))) for value in logits.flatten().tolist()) / 7
    found = [taken_for_noise(logits[share(7, part, parts)], 7) for part in range(parts)]
    assert sum(found).item() == pytest.approx(wanted, rel=1e-12)  # type: ignore[union-attr]
    far = taken_for_noise(torch.tensor([[-1e4], [1e4]]), 2)
    assert far.item() == pytest.approx(5e3)  # no probability underflows
