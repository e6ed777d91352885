"""Batch norm over the ranks' rows is torch's batch norm over all rows, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.runtime.distributed import World

CHANNELS = 5
NORMS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(CHANNELS, momentum=0.3),
    "2d": lambda: nn.BatchNorm2d(CHANNELS, eps=1e-3),
    "channels last": lambda: nn.BatchNorm2d(CHANNELS),
    "with activation": lambda: BatchNormAct2d(CHANNELS, act_layer=nn.SiLU),
}
# Rows of each rank: even, uneven, and ranks that have none.
SPLITS = {1: [(8,)], 2: [(4, 4), (5, 3), (8, 0), (1, 1)], 4: [(2, 2, 2, 2), (3, 0, 1, 4), (0, 1, 0, 1)]}
SINGLE = {2: (0, 1), 4: (0, 0, 1, 0)}


def _norm(kind: str) -> nn.Module:
    made = NORMS[kind]().double().train()
    random = torch.Generator().manual_seed(7)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=random, dtype=torch.float64))
    return made


def _rows(kind: str, count: int) -> tuple[Tensor, Tensor]:
    """Input, far from zero mean, and the gradient of the output."""
    random = torch.Generator().manual_seed(count)
    shape = (count, CHANNELS) if kind == "1d" else (count, CHANNELS, 3, 2)
    x, grad = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    x = 3 * x + 2
    return (x.contiguous(memory_format=torch.channels_last) if kind == "channels last" else x), grad


def _pass(norm: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    out = norm(x)
    out.backward(grad)
    assert x.grad is not None
    return {
        "out": out.detach(),
        "x": x.grad,
        **{f"{name}.grad": weight.grad for name, weight in norm.named_parameters()},
        **{name: buffer.clone() for name, buffer in norm.named_buffers()},
    }


def _own(values: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    return torch.split(values, split)[rank]


@on_ranks(1, 2, 4)
def normalise(world: World, folder: Path) -> dict[str, Any]:
    """Two passes of each kind over each split: what came out and went back, and the buffers."""
    found: dict[str, Any] = {}
    for kind in NORMS:
        for split in SPLITS[world.world_size]:
            norm = _norm(kind)
            use_global_batch_norm(norm, sync=True)
            x, grad = _rows(kind, sum(split))
            first = _pass(norm, _own(x, split, world.rank), _own(grad, split, world.rank))
            norm.zero_grad()
            found[f"{kind} {split}"] = first, _pass(norm, _own(x * 2, split, world.rank), _own(grad, split, world.rank))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", NORMS)
def test_ranks_together_are_torchs_batch_norm(computed: Callable[..., Any], kind: str, world_size: int) -> None:
    ranks = computed(normalise, world_size)
    for split in SPLITS[world_size]:
        norm = _norm(kind)
        x, grad = _rows(kind, sum(split))
        for turn in range(2):
            wanted = _pass(norm, x * (1 + turn), grad)
            norm.zero_grad()
            found = [rank[f"{kind} {split}"][turn] for rank in ranks]
            for key in ("out", "x"):
                torch.testing.assert_close(
                    torch.cat([rank[key] for rank in found]), wanted[key], rtol=1e-12, atol=1e-12
                )
            for key in ("weight.grad", "bias.grad"):  # each rank has the part through its own rows
                torch.testing.assert_close(sum(rank[key] for rank in found), wanted[key], rtol=1e-12, atol=1e-12)
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                for rank in found:
                    torch.testing.assert_close(rank[key], wanted[key], rtol=1e-13, atol=1e-13)


@on_ranks(1, 2, 4)
def single_value(world: World, folder: Path) -> Any:
    """One row on one rank alone."""
    split = SINGLE.get(world.world_size, (1,))
    norm = _norm("1d")
    use_global_batch_norm(norm, sync=True)
    x, grad = _rows("1d", 1)
    return _pass(norm, _own(x, split, world.rank), _own(grad, split, world.rank))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_single_value_passes_on_the_running_statistics(computed: Callable[..., Any], world_size: int) -> None:
    found = computed(single_value, world_size)
    wanted = _pass(_norm("1d").eval(), *_rows("1d", 1))
    for key in ("out", "x"):
        torch.testing.assert_close(torch.cat([rank[key] for rank in found]), wanted[key], rtol=1e-12, atol=1e-12)
    for key, value in _norm("1d").named_buffers():
        assert all(torch.equal(rank[key], value) for rank in found), f"{key} moved"


@on_ranks(2)
def apart(world: World, folder: Path) -> Any:
    """Each rank by itself."""
    norm = _norm("2d")
    use_global_batch_norm(norm, sync=False)
    x, grad = _rows("2d", 8)
    return _pass(norm, _own(x, (5, 3), world.rank), _own(grad, (5, 3), world.rank))


def test_without_sync_each_rank_has_its_own_statistics(computed: Callable[..., Any]) -> None:
    x, grad = _rows("2d", 8)
    for rank, found in enumerate(computed(apart, 2)):
        wanted = _pass(_norm("2d"), _own(x, (5, 3), rank), _own(grad, (5, 3), rank))
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value)


@on_ranks(2)
def low_precision(world: World, folder: Path) -> Any:
    """bfloat16 inputs, as under autocast, with weights and statistics in single precision."""
    norm = _norm("channels last").float()
    use_global_batch_norm(norm, sync=True)
    x, grad = (_own(values, (5, 3), world.rank).bfloat16() for values in _rows("channels last", 8))
    return _pass(norm, x, grad)


def test_bfloat16_inputs_keep_statistics_in_single_precision(computed: Callable[..., Any]) -> None:
    found = computed(low_precision, 2)
    x, grad = (values.bfloat16().float() for values in _rows("channels last", 8))
    wanted = _pass(_norm("channels last").float(), x, grad)
    for rank in found:
        assert rank["out"].dtype == rank["x"].dtype == torch.bfloat16
        assert rank["weight.grad"].dtype == torch.float32
        torch.testing.assert_close(rank["running_var"], wanted["running_var"])
    for key in ("out", "x"):
        torch.testing.assert_close(torch.cat([rank[key] for rank in found]).float(), wanted[key], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shape", [(36, 8, 96, 64), (7, 3, 5, 2), (50, 6)])
@pytest.mark.parametrize("dims", [[0, 2, 3], [2, 3]])
@pytest.mark.parametrize("last", [True, False])
def test_moments_are_as_close_as_torchs(shape: tuple[int, ...], dims: list[int], last: bool) -> None:
    from embae.trainer.model.norm_statistics import mean_var

    if len(shape) == 2:
        dims = [0]
    random = torch.Generator().manual_seed(1)
    scale = 10 ** torch.linspace(-2, 2, shape[1]).view(-1, *[1] * (len(shape) - 2))
    x = scale * torch.randn(shape, generator=random) + 5
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var = mean_var(x, dims)
    wanted_var, wanted_mean = torch.var_mean(x.double(), dims, correction=0, keepdim=True)
    their_var, _ = torch.var_mean(x, dims, correction=0, keepdim=True)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=1e-6)
    error, theirs = ((found / wanted_var - 1).abs().max() for found in (var, their_var))
    assert error < max(4 * theirs, 1e-6)


def test_the_backward_pass_is_the_derivative() -> None:
    from embae.trainer.model.batch_norm import GlobalBatchNormFunction

    for kind in ("1d", "2d"):
        norm, (x, _) = _norm(kind), _rows(kind, 4)
        use_global_batch_norm(norm, sync=False)

        def normalise_alone(x: Tensor, weight: Tensor, bias: Tensor, norm: Any = norm) -> Tensor:
            return GlobalBatchNormFunction.apply(x, weight, bias, norm)

        assert torch.autograd.gradcheck(normalise_alone, (x.requires_grad_(), norm.weight, norm.bias))


def test_in_eval_mode_nothing_is_counted() -> None:
    norm = nn.Sequential(_norm("with activation")).eval()
    wanted, x = copy.deepcopy(norm), _rows("2d", 3)[0]
    use_global_batch_norm(norm, sync=True)
    assert torch.equal(norm(x), wanted(x))
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in norm.state_dict().items())


def test_it_changes_no_names_and_may_be_used_twice() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Sequential(BatchNormAct2d(3)))
    before = list(module.state_dict())
    use_global_batch_norm(module, sync=True)
    kinds = [type(child) for child in module.modules()]
    use_global_batch_norm(module, sync=False)
    assert [type(child) for child in module.modules()] == kinds
    assert list(module.state_dict()) == before
    assert np.array_equal([module[0].sync, module[2][0].sync], [False, False])


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm3d(2),
        nn.SyncBatchNorm(2),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, momentum=None),
        nn.BatchNorm2d(2, track_running_stats=False),
    ],
    ids=["3d", "SyncBatchNorm", "not affine", "no momentum", "no running statistics"],
)
def test_a_batch_norm_that_it_would_get_wrong_is_refused(norm: nn.Module) -> None:
    with pytest.raises(TypeError, match=type(norm).__name__):
        use_global_batch_norm(nn.Sequential(norm), sync=True)
