"""Batch norm over the global batch, so that the number of ranks does not change the model.

torch's SyncBatchNorm refuses CPU tensors, and DeepSpeed leaves batch norm to each rank. This one runs on both kinds of
device, weights ranks by their rows, stands ranks without any, and lets a batch of a single value pass through on the
running statistics, which it leaves alone. Norms that hold statistics by camera go by these (`cameras.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.trainer.model.camera_batch_norm import CameraBatchNorm
from embae.trainer.model.camera_tables import batch_norm_by_camera, trained_by
from embae.trainer.model.norm_statistics import combine, exact, follow, mean_var, pull


def use_global_batch_norm(module: nn.Module, *, sync: bool) -> None:
    """Makes every batch norm below a module one over the global batch.

    Args:
        module: Changed in place; parameters, buffers and their names stay.
        sync: False keeps each rank's statistics its own.

    Raises:
        TypeError: A batch norm of a class that is not known here, or without weights or running averages.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            if child.weight is None or child.running_mean is None or child.momentum is None:
                raise TypeError(f"{type(child).__name__}: wanted one with weights, running statistics and a momentum")
            # Parameters and buffers stay where they are, only `forward` differs; a new module would have to copy hooks,
            # timm's activation and every flag.
            if type(child) in _GLOBAL:
                child.__class__ = _GLOBAL[type(child)]
            elif not isinstance(child, _Global):
                raise TypeError(f"{type(child).__name__}: no global form of this batch norm is known; "
                                f"known: {', '.join(kind.__name__ for kind in _GLOBAL)}")
            child.sync = sync  # type: ignore[assignment]


class _Global:
    """What the global batch norms share."""

    sync: bool

    def _normalise(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            if (by_camera := batch_norm_by_camera(self, x)) is not None:
                return by_camera
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        together = self.sync and dist.is_initialized() and dist.get_world_size() > 1
        if (cameras := trained_by(self)) is not None:
            return CameraBatchNorm.apply(x, self.weight, self.bias, self, *cameras, together)
        if not together and x.numel() // x.shape[1] > 1:
            self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum,
                                self.eps)
        return GlobalBatchNormFunction.apply(x, self.weight, self.bias, self.running_mean, self.running_var,
                                      self.num_batches_tracked, self.momentum, self.eps, together)


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x)


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x)


class GlobalBatchNormAct2d(_Global, BatchNormAct2d):
    """timm's batch norm with activation, over the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self._normalise(x)))


_GLOBAL: dict[type, Any] = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d,
                            BatchNormAct2d: GlobalBatchNormAct2d}


def as_columns(values: Tensor, x: Tensor) -> Tensor:
    """Per-channel values shaped to go with x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


class GlobalBatchNormFunction(torch.autograd.Function):
    """Normalises by the statistics of all ranks' rows; the backward pass goes through those statistics too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
                tracked: Tensor, momentum: float, eps: float, together: bool) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1]
        if count:
            mean, var = (values.flatten() for values in mean_var(x, dims))
        else:  # a rank without rows of this camera still takes part
            mean = var = x.new_zeros(x.shape[1], dtype=exact(x))
        n, mean, var = combine(mean.new_full((1,), count), mean, var, together)
        mean, var = follow(running_mean, running_var, n, mean, var, momentum)
        tracked.add_((n > 1).squeeze())
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.eps, ctx.together = eps, together
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n = ctx.saved_tensors
        (grad,) = grads
        if x.numel():
            last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            none = mean.new_empty(0)  # as torch's own forward pass leaves them; on a GPU None is refused
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, var, none, none, False, ctx.eps, [False, True, True])
        else:
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        total = torch.stack([grad_weight, grad_bias])
        if ctx.together:
            dist.all_reduce(total)
        factor, slope, constant = (as_columns(values, x) for values in pull(weight, mean, var, n, total, ctx.eps))
        grad_x = torch.addcmul(constant, x, slope).addcmul_(grad, factor).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None, None
