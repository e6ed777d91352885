"""Batch norm by camera in training: each camera's rows of the global batch by the statistics of these rows alone.

Domain-specific batch norm (Chang et al. 2019) with cameras for domains, as in camera-based batch norm (Zhuang et al.
2020): weight and bias are shared. Each norm keeps running statistics of every camera (`cameras.py` says where), and in
running_mean and running_var those of the whole batches, for images of cameras that it does not know.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embae.trainer.model.camera_tables import MEAN, VAR
from embae.trainer.model.norm_statistics import combine, exact, follow, mean_var, merge, pieces, pull


class CameraBatchNorm(torch.autograd.Function):
    """Normalises `(N, C, …)` by camera; the backward pass goes through the cameras' statistics too.

    An image's own moments come first and are added up by camera, so that images may lie in any order and nothing has to
    know how many are of which. These sums are in double precision, which autocast and TF32 leave alone. A camera with a
    single value in the batch, or none, goes through its running statistics, which then stay.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, which: Tensor, present: Tensor,
                together: bool) -> Tensor:
        """Args, besides those of a batch norm.

        norm: Where running statistics, momentum and epsilon are.
        which: `(N,)` the camera of each image.
        present: `(K,)` the cameras that the global batch has images of, rising; the same on every rank.
        together: Whether statistics are those of all ranks.
        """
        flat = _flat(x)
        group = torch.searchsorted(present, which)
        members = _members(group, len(present))
        own_mean, own_var = (values.squeeze(2).double() for values in mean_var(flat, [2]))
        rows = members.sum(1, keepdim=True)
        share = members / rows.clamp(min=1)
        mean = share @ own_mean
        var = share @ (own_var + (own_mean - mean[group]).square())
        count, mean, var = (values.to(exact(x)) for values in (rows * flat.shape[2], mean, var))
        n, mean, var = combine(count, mean, var, together)
        every, shared_mean, shared_var = merge(n, mean, var)
        follow(norm.running_mean, norm.running_var, every, shared_mean, shared_var, norm.momentum)
        norm.num_batches_tracked.add_((every > 1).squeeze())
        tables = norm.get_buffer(MEAN), norm.get_buffer(VAR)
        running_mean, running_var = (table.index_select(0, present) for table in tables)
        mean, var = follow(running_mean, running_var, n, mean, var, norm.momentum)
        for table, moved in zip(tables, (running_mean, running_var), strict=True):
            table.index_copy_(0, present, moved)
        ctx.save_for_backward(x, weight, mean, var, n, group)
        ctx.eps, ctx.together = norm.eps, together
        scale = weight * torch.rsqrt(var + norm.eps)
        shift = bias - mean * scale
        out = torch.empty_like(x)  # not a view, so that an activation may write into it
        torch.addcmul(_rows(shift, group), flat, _rows(scale, group), out=_flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n, group = ctx.saved_tensors
        flat, grad = _flat(x), _flat(grads[0])
        products = [(part - middle).mul_(back).sum(2)
                    for part, middle, back in pieces(flat, _rows(mean, group), grad)]
        own = torch.stack([torch.cat(products), grad.sum(2, dtype=exact(x))]).double()
        total = (_members(group, len(mean)) @ own).to(exact(x))
        total[0] *= torch.rsqrt(var + ctx.eps)
        grad_weight, grad_bias = total.sum(1)
        if ctx.together:
            dist.all_reduce(total)
        factor, slope, constant = (_rows(values, group) for values in pull(weight, mean, var, n, total, ctx.eps))
        grad_x = torch.addcmul(constant, flat, slope).addcmul_(grad, factor).to(x.dtype)
        return grad_x.view_as(x), grad_weight, grad_bias, None, None, None, None


def _flat(x: Tensor) -> Tensor:
    """`(N, C, …)` as `(N, C, values)`, channels last in memory where they were."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def _members(group: Tensor, groups: int) -> Tensor:
    """Which rows are of which group: `(K, N)` of 0 and 1, in double precision."""
    return (group == torch.arange(groups, device=group.device)[:, None]).double()


def _rows(values: Tensor, group: Tensor) -> Tensor:
    """The values of each image's group: `(K, C)` to `(N, C, 1)`."""
    return values[group].unsqueeze(2)
