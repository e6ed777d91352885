"""The triplet loss against its formulas, written out, and over the global batch of several ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from torch import Tensor

from embae.datasets.sampling.sampler import share
from embae.trainer.losses import triplet
from embae.trainer.runtime.distributed import World, gather_rows


def _embeddings(count: int = 12, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


IDENTITY = torch.tensor([0, 0, 0, 7, 7, 2, 2, 2, 2, 7, 5, 5])


def literal(z: np.ndarray, identity: list[int], margin: Literal["soft"] | float) -> tuple[float, float]:
    """Hermans et al. 2017, eq. 5, letter by letter: loss, and the share of anchors that are right."""
    total, right = 0.0, 0
    for a in range(len(z)):
        farthest, nearest = -math.inf, math.inf
        for other in range(len(z)):
            d = math.sqrt(sum((z[a][i] - z[other][i]) ** 2 for i in range(len(z[a]))))
            if identity[other] == identity[a] and other != a:
                farthest = max(farthest, d)
            elif identity[other] != identity[a]:
                nearest = min(nearest, d)
        gap = farthest - nearest
        total += math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, margin + gap)
        right += gap < 0
    return total / len(z), right / len(z)


@pytest.mark.parametrize("anchors", [1024, 5])  # all at a time, or in three parts
@pytest.mark.parametrize("margin", ["soft", 0.2, 1.0])
def test_batch_hard_is_its_formula(
    monkeypatch: pytest.MonkeyPatch, margin: Literal["soft"] | float, anchors: int
) -> None:
    monkeypatch.setattr(triplet, "ANCHORS", anchors)
    z = _embeddings() + IDENTITY[:, None] * (torch.arange(6) < 3)
    loss, report = triplet.batch_hard(z, IDENTITY, margin)
    wanted, right = literal(z.numpy(), IDENTITY.tolist(), margin)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert report["right"].item() == pytest.approx(right)
    assert 0 < right < 1


@pytest.mark.parametrize("margin", ["soft", 0.5])
def test_its_gradient_is_the_derivative(margin: Literal["soft"] | float) -> None:
    assert torch.autograd.gradcheck(
        lambda z: triplet.batch_hard(z, IDENTITY, margin)[0], (_embeddings().requires_grad_(),)
    )


def test_identical_embeddings_have_a_finite_gradient() -> None:
    z = torch.ones(12, 6, requires_grad=True)
    loss, _ = triplet.batch_hard(z, IDENTITY)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert z.grad is not None and z.grad.isfinite().all()


@on_ranks(2, 3, 4)
def mine_together(world: World, folder: Path) -> Any:
    """Batch-hard over the gathered rows of even and uneven shares: own gradient as an engine averages it."""
    found = {}
    for count in (12, 11, 10):
        own = share(count, world.rank, world.world_size)
        z = _embeddings(count)[own].requires_grad_()
        everyone = gather_rows(z, count)
        loss, _ = triplet.batch_hard(everyone, IDENTITY[:count])
        (loss * world.world_size).backward()
        found[count] = everyone.detach(), loss.detach(), z.grad / world.world_size
    numbers = torch.arange(7, dtype=torch.int64)[share(7, world.rank, world.world_size)]
    return {**found, "numbers": gather_rows(numbers, 7)}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_mine_the_global_batch(computed: Callable[..., Any], world_size: int) -> None:
    ranks = computed(mine_together, world_size)
    for count in (12, 11, 10):
        z = _embeddings(count).requires_grad_()
        loss, _ = triplet.batch_hard(z, IDENTITY[:count])
        loss.backward()
        for rank in ranks:
            assert torch.equal(rank[count][0], z)
            assert rank[count][1].item() == pytest.approx(loss.item(), rel=1e-14)
        # An engine averages what each rank got for its own rows, here zero on the others.
        torch.testing.assert_close(torch.cat([rank[count][2] for rank in ranks]), z.grad, rtol=1e-12, atol=1e-14)
    assert all(rank["numbers"].tolist() == list(range(7)) for rank in ranks)


@pytest.mark.parametrize("margin", ["soft", 0.2])
def test_batch_all_is_its_formula(margin: Literal["soft"] | float) -> None:
    """Hermans et al. 2017, eq. 6."""
    z, identity = _embeddings().numpy(), IDENTITY.tolist()
    each = []
    for a, p, n in itertools.product(range(len(z)), repeat=3):
        if a != p and identity[a] == identity[p] and identity[a] != identity[n]:
            gap = math.dist(z[a], z[p]) - math.dist(z[a], z[n])
            each.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, margin + gap))
    counted = len(each) if margin == "soft" else sum(loss > 0 for loss in each)
    loss, report = triplet.batch_all(_embeddings(), IDENTITY, margin)
    assert loss.item() == pytest.approx(sum(each) / counted, rel=1e-12)
    assert report == {
        key: pytest.approx(value) for key, value in triplet.batch_hard(_embeddings(), IDENTITY)[1].items()
    }
    z = torch.ones(12, 6, requires_grad=True)
    triplet.batch_all(z, IDENTITY, margin)[0].backward()
    assert z.grad is not None and z.grad.isfinite().all()
