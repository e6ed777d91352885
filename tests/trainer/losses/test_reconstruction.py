"""The reconstruction loss against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embae.trainer.losses.reconstruction import reconstruction


def _embeddings(count: int = 12, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_reconstruction_is_a_mean_over_images_and_features() -> None:
    rebuilt, features = _embeddings(), _embeddings().flip(0)
    whole = reconstruction(rebuilt, features, 12)
    assert whole.item() == pytest.approx(torch.nn.functional.mse_loss(rebuilt, features).item(), rel=1e-13)
    parts = [
        reconstruction(rebuilt[part], features[part], 12) for part in (slice(0, 5), slice(5, 5), slice(5, 12))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-13)
