"""Batch norm by camera in training: each camera's rows of the global batch are normalised by their own statistics.

This is domain-specific batch norm (Chang et al. 2019) with cameras as domains, as in camera-based batch norm (Zhuang et
al. 2020): weight and bias are shared. Each norm updates running statistics of every camera (`camera_tables.py` says
where they are), and in running_mean and running_var those of the whole batches, for images of unknown cameras.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embae.trainer.model.camera_tables import MEAN, VAR, TrainingCameras
from embae.trainer.model.norm_statistics import combine, exact, follow, mean_var, merge, pieces, pull


class CameraBatchNorm(torch.autograd.Function):
    """Normalises `(N, C, …)` by camera; gradients flow through the cameras' statistics too.

    The moments of each image are computed first and then added up by camera, so that images may be in any order and
    the number of images per camera need not be known. These sums are in double precision, which autocast and TF32 leave
    unchanged. A camera with a single value in the batch, or none, is normalised by its running statistics, which then
    stay unchanged.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, cameras: TrainingCameras) -> Tensor:
        """Args, besides those of a batch norm.

        norm: The module, with running statistics, momentum and epsilon.
        cameras: The camera of each image, and those of the global batch.
        """
        flat = _flat(x)
        group = torch.searchsorted(cameras.in_batch, cameras.of_image)
        members = _members(group, len(cameras.in_batch))
        image_mean, image_var = (values.squeeze(2).double() for values in mean_var(flat, [2]))
        rows = members.sum(1, keepdim=True)
        share = members / rows.clamp(min=1)
        mean = share @ image_mean
        var = share @ (image_var + (image_mean - mean[group]).square())
        count, mean, var = (values.to(exact(x)) for values in (rows * flat.shape[2], mean, var))
        n, mean, var = combine(count, mean, var, norm.spans_ranks)
        total, shared_mean, shared_var = merge(n, mean, var)
        follow(norm.running_mean, norm.running_var, total, shared_mean, shared_var, norm.momentum)
        norm.num_batches_tracked.add_((total > 1).squeeze())
        tables = norm.get_buffer(MEAN), norm.get_buffer(VAR)
        running_mean, running_var = (table.index_select(0, cameras.in_batch) for table in tables)
        mean, var = follow(running_mean, running_var, n, mean, var, norm.momentum)
        for table, updated in zip(tables, (running_mean, running_var), strict=True):
            table.index_copy_(0, cameras.in_batch, updated)
        ctx.save_for_backward(x, weight, mean, var, n, group)
        ctx.eps, ctx.spans_ranks = norm.eps, norm.spans_ranks
        scale = weight * torch.rsqrt(var + norm.eps)
        shift = bias - mean * scale
        out = torch.empty_like(x)  # not a view, so that an activation may write into it
        torch.addcmul(_rows(shift, group), flat, _rows(scale, group), out=_flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n, group = ctx.saved_tensors
        flat, grad = _flat(x), _flat(grads[0])
        products = [(values - means).mul_(gradients).sum(2)
                    for values, means, gradients in pieces(flat, _rows(mean, group), grad)]
        by_image = torch.stack([torch.cat(products), grad.sum(2, dtype=exact(x))]).double()
        total = (_members(group, len(mean)) @ by_image).to(exact(x))
        total[0] *= torch.rsqrt(var + ctx.eps)
        grad_weight, grad_bias = total.sum(1)
        if ctx.spans_ranks:
            dist.all_reduce(total)
        factor, slope, constant = (_rows(values, group) for values in pull(weight, mean, var, n, total, ctx.eps))
        grad_x = torch.addcmul(constant, flat, slope).addcmul_(grad, factor).to(x.dtype)
        return grad_x.view_as(x), grad_weight, grad_bias, None, None


def _flat(x: Tensor) -> Tensor:
    """`(N, C, …)` as `(N, C, values)`, channels last in memory if they were."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def _members(group: Tensor, groups: int) -> Tensor:
    """Membership of rows in groups: `(K, N)` of 0 and 1, in double precision."""
    return (group == torch.arange(groups, device=group.device)[:, None]).double()


def _rows(values: Tensor, group: Tensor) -> Tensor:
    """The values of each image's group: `(K, C)` to `(N, C, 1)`."""
    return values[group].unsqueeze(2)
