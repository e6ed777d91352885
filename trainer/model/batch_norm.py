"""Batch norm over the global batch, so that the number of ranks does not change the model.

torch's SyncBatchNorm refuses CPU tensors, and DeepSpeed leaves batch norm to each rank. This one runs on both kinds of
device, weights ranks by their rows, accepts ranks without rows, and normalises a batch of a single value by the running
statistics, which then stay unchanged. Norms with statistics by camera use these (`camera_tables.py`).
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
from embae.trainer.model.camera_tables import batch_norm_by_camera, training_cameras
from embae.trainer.model.norm_statistics import combine, exact, follow, mean_var, pull


def use_global_batch_norm(module: nn.Module, *, sync: bool) -> None:
    """Turns every batch norm below a module into a batch norm over the global batch.

    Args:
        module: Changed in place; parameters, buffers and their names stay.
        sync: False leaves each rank to normalise by its own rows.

    Raises:
        TypeError: A batch norm is of an unknown class, or has no weights or running averages.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            if child.weight is None or child.running_mean is None or child.momentum is None:
                raise TypeError(f"{type(child).__name__}: expected weights, running statistics and a momentum")
            # Only the class changes, and with it `forward`; a new module would have to copy parameters, buffers, hooks,
            # timm's activation and every flag.
            if type(child) in _GLOBAL:
                child.__class__ = _GLOBAL[type(child)]
            elif not isinstance(child, _Global):
                raise TypeError(f"{type(child).__name__}: no global form of this batch norm is known; "
                                f"known: {', '.join(kind.__name__ for kind in _GLOBAL)}")
            child.sync = sync  # type: ignore[assignment]


class _Global:
    """The computation that the global batch norms share."""

    sync: bool

    @property
    def spans_ranks(self) -> bool:
        """Whether statistics are those of all ranks' rows."""
        return self.sync and dist.is_initialized() and dist.get_world_size() > 1

    def _normalise(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            if (by_camera := batch_norm_by_camera(self, x)) is not None:
                return by_camera
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if (cameras := training_cameras(self)) is not None:
            return CameraBatchNorm.apply(x, self.weight, self.bias, self, cameras)
        if not self.spans_ranks and x.numel() // x.shape[1] > 1:
            self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum,
                                self.eps)
        return GlobalBatchNormFunction.apply(x, self.weight, self.bias, self)


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


def _columns(values: Tensor, x: Tensor) -> Tensor:
    """Per-channel values in a shape that broadcasts with x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


class GlobalBatchNormFunction(torch.autograd.Function):
    """Normalises by the statistics of all ranks' rows; gradients flow through those statistics too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any) -> Tensor:
        """Args, besides those of a batch norm.

        norm: The module, with running statistics, momentum and epsilon.
        """
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1]
        if count:
            mean, var = (values.flatten() for values in mean_var(x, dims))
        else:  # a rank without rows still joins the exchange
            mean = var = x.new_zeros(x.shape[1], dtype=exact(x))
        n, mean, var = combine(mean.new_full((1,), count), mean, var, norm.spans_ranks)
        mean, var = follow(norm.running_mean, norm.running_var, n, mean, var, norm.momentum)
        norm.num_batches_tracked.add_((n > 1).squeeze())
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.eps, ctx.spans_ranks = norm.eps, norm.spans_ranks
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, norm.eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, n = ctx.saved_tensors
        (grad,) = grads
        if x.numel():
            last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            none = mean.new_empty(0)  # as torch's own forward pass saves them; a GPU refuses None
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, var, none, none, False, ctx.eps, [False, True, True])
        else:
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        total = torch.stack([grad_weight, grad_bias])
        if ctx.spans_ranks:
            dist.all_reduce(total)
        factor, slope, constant = (_columns(values, x) for values in pull(weight, mean, var, n, total, ctx.eps))
        grad_x = torch.addcmul(constant, x, slope).addcmul_(grad, factor).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None
