"""Circle loss against the formula of its paper, written out pair by pair, and at its extremes."""

from __future__ import annotations

import pytest
import torch
from helpers.gradient_cases import literal_circle
from torch import Tensor

from embae.trainer.losses.circle import CircleLoss, circle

IDENTITY = torch.tensor([0, 0, 0, 7, 7, 2, 2, 2, 2, 7, 5, 5])


def _embeddings() -> Tensor:
    drawn = torch.randn(12, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return drawn + 2 * IDENTITY[:, None] * (torch.arange(6) == IDENTITY[:, None] % 6)


@pytest.mark.parametrize("margin, gamma", [(0.25, 64.0), (0.0, 16.0), (0.4, 80.0)])
def test_the_loss_and_its_gradient_are_those_of_the_formula(margin: float, gamma: float) -> None:
    z, same = _embeddings().requires_grad_(), _embeddings().requires_grad_()
    loss, metrics = circle(z, IDENTITY, margin=margin, gamma=gamma)
    expected = literal_circle(same, IDENTITY.tolist(), margin=margin, gamma=gamma)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10) and loss.item() > 0.1
    torch.testing.assert_close(z.grad, same.grad, rtol=1e-8, atol=1e-12)
    unit = torch.nn.functional.normalize(_embeddings())
    every = [(a, b) for a in range(12) for b in range(12) if a != b]
    pairs = [(float(unit[a] @ unit[b]), bool(IDENTITY[a] == IDENTITY[b])) for a, b in every]
    for name, kind in (("cosine_positive", True), ("cosine_negative", False)):
        cosines = [cosine for cosine, positive in pairs if positive == kind]
        assert metrics[name].item() == pytest.approx(sum(cosines) / len(cosines))


def test_only_directions_count() -> None:
    lengths = torch.linspace(0.1, 9, 12, dtype=torch.float64)[:, None]
    scaled, plain = (circle(z, IDENTITY)[0].item() for z in (lengths * _embeddings(), _embeddings()))
    assert scaled == pytest.approx(plain)


def test_no_exponential_overflows() -> None:
    """In single precision exp(89) is infinite; here the exponents reach 4096 · 1.25 · 0.75."""
    z = torch.eye(2)[torch.tensor([0, 1, 0, 1])].requires_grad_()  # positives at right angles, negatives equal
    loss, _ = circle(z, torch.tensor([0, 0, 1, 1]), gamma=4096)
    loss.backward()
    assert 4000 < loss.item() < 9000
    assert z.grad is not None and z.grad.isfinite().all()


def test_pairs_at_their_optimum_cost_nothing() -> None:
    z = torch.eye(2)[torch.tensor([0, 0, 1, 1])]
    assert circle(z, torch.tensor([0, 0, 1, 1]), gamma=256)[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("key, value", [("margin", 1.0), ("gamma", 0), ("weight", 0)])
def test_its_keys_are_checked(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        CircleLoss.model_validate({key: value})
