"""Statistics that batch norms take of a batch, together over rows and ranks, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

CACHED = 2**17  # numbers that a core's cache has room for


def exact(x: Tensor) -> torch.dtype:
    """What statistics of x are taken in: at least single precision."""
    return torch.promote_types(x.dtype, torch.float32)


def mean_var(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over some dimensions, which stay as 1."""
    if x.is_cuda:
        var, mean = torch.var_mean(x.to(exact(x)), dims, correction=0, keepdim=True)
        return mean, var
    # On CPU, var_mean takes one number after another where channels come last: twenty times as long as two passes.
    mean = x.mean(dims, keepdim=True, dtype=exact(x))
    squares = [(part - own).square_().sum(dims, keepdim=True)
               for part, own in pieces(x, mean.expand(len(x), *mean.shape[1:]))]
    total = torch.stack(squares).sum(0) if 0 in dims else torch.cat(squares)
    return mean, total / math.prod(x.shape[d] for d in dims)


def pieces(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors by some rows at a time: on CPU so few that what is computed of them stays in the cache."""
    rows = max(1, len(x) if x.is_cuda else CACHED * len(x) // max(1, x.numel()))
    return zip(*(tensor.split(rows) for tensor in (x, *others)), strict=True)


def combine(count: Tensor, mean: Tensor, var: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `(…, 1)`, mean and variance `(…, C)` over all ranks, from those of each: one exchange."""
    if not together:
        return count, mean, var
    own = torch.cat([count, mean, var], -1)
    every = own.new_empty(dist.get_world_size(), *own.shape)
    dist.all_gather(list(every.unbind()), own)
    return merge(*every.split([1, mean.shape[-1], mean.shape[-1]], -1))


def merge(count: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean and variance of all groups together, which the first dimension tells apart.

    There is no sum of squares whose digits could cancel.
    """
    n = count.sum(0)
    share = count / n.clamp(min=1)
    overall = (share * mean).sum(0)
    return n, overall, (share * (var + (mean - overall) ** 2)).sum(0)


def follow(running_mean: Tensor, running_var: Tensor, n: Tensor, mean: Tensor, var: Tensor,
           momentum: float) -> tuple[Tensor, Tensor]:
    """Moves running statistics towards those of n values; returns the mean and variance to normalise by.

    A single value has no variance: it passes on the running statistics and leaves them alone. Decided on the device,
    since asking for a number would make a GPU wait.
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
    """The gradient of x as factor × (the output's gradient) + slope × x + constant: these three.

    Were the statistics constants, there would be the factor alone. Through them, each x also moves by the means, over
    all n values, of the output's gradient and of its product with the normalised x: `total` holds the sums of that
    product and of that gradient, `(2, …, C)`.
    """
    scale = torch.rsqrt(var + eps)
    factor = weight * scale
    each = torch.where(n > 1, factor / n, 0.0)
    slope = -each * scale * total[0]
    return factor, slope, -each * total[1] - slope * mean
