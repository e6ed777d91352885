"""Statistics of a batch for batch norms, over rows and ranks; updates of running statistics; gradients through them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

CACHED = 2**17  # numbers that fit into a core's cache


def exact(x: Tensor) -> torch.dtype:
    """The precision of statistics of x: at least single precision."""
    return torch.promote_types(x.dtype, torch.float32)


def mean_var(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over some dimensions, which stay as dimensions of size 1."""
    if x.is_cuda:
        var, mean = torch.var_mean(x.to(exact(x)), dims, correction=0, keepdim=True)
        return mean, var
    # On CPU, var_mean processes numbers one by one if channels come last: twenty times as long as two passes.
    mean = x.mean(dims, keepdim=True, dtype=exact(x))
    squares = [(values - means).square_().sum(dims, keepdim=True)
               for values, means in pieces(x, mean.expand(len(x), *mean.shape[1:]))]
    total = torch.stack(squares).sum(0) if 0 in dims else torch.cat(squares)
    return mean, total / math.prod(x.shape[d] for d in dims)


def pieces(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors by some rows at a time: on CPU so few that intermediate results stay in the cache."""
    rows = max(1, len(x) if x.is_cuda else CACHED * len(x) // max(1, x.numel()))
    return zip(*(tensor.split(rows) for tensor in (x, *others)), strict=True)


def combine(count: Tensor, mean: Tensor, var: Tensor, spans_ranks: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `(…, 1)`, mean and variance `(…, C)` over all ranks, from those of each rank, in one exchange."""
    if not spans_ranks:
        return count, mean, var
    this_rank = torch.cat([count, mean, var], -1)
    ranks = this_rank.new_empty(dist.get_world_size(), *this_rank.shape)
    dist.all_gather(list(ranks.unbind()), this_rank)
    return merge(*ranks.split([1, mean.shape[-1], mean.shape[-1]], -1))


def merge(count: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean and variance over all groups; the first dimension separates the groups.

    It avoids a sum of squares, whose digits could cancel.
    """
    n = count.sum(0)
    share = count / n.clamp(min=1)
    overall = (share * mean).sum(0)
    return n, overall, (share * (var + (mean - overall) ** 2)).sum(0)


def follow(running_mean: Tensor, running_var: Tensor, n: Tensor, mean: Tensor, var: Tensor,
           momentum: float) -> tuple[Tensor, Tensor]:
    """Moves running statistics towards those of n values; returns the mean and variance to normalise by.

    A single value has no variance: it is normalised by the running statistics and leaves them unchanged. The device
    decides this, since reading a number back would make a GPU wait.
    """
    enough = n > 1
    unbiased = torch.where(enough, var * (n / (n - 1).clamp(min=1)), running_var)
    mean, var = torch.where(enough, mean, running_mean), torch.where(enough, var, running_var)
    step = momentum * enough.to(running_mean)
    running_mean.lerp_(mean.to(running_mean), step)
    running_var.lerp_(unbiased.to(running_var), step)
    return mean, var


def pull(weight: Tensor, mean: Tensor, var: Tensor, n: Tensor, total: Tensor,
         eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Factor, slope and constant of the gradient of x: factor × (gradient of the output) + slope × x + constant.

    If the statistics were constants, only the factor would remain. Through the statistics, the gradient of each x also
    contains the means over all n values of the output's gradient and of its product with the normalised x: `total`
    contains the sums of that product and of that gradient, `(2, …, C)`.
    """
    scale = torch.rsqrt(var + eps)
    factor = weight * scale
    each = torch.where(n > 1, factor / n, 0.0)
    slope = -each * scale * total[0]
    return factor, slope, -each * total[1] - slope * mean
