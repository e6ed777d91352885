"""Batch norm over the global batch and by camera against torch's own: forward and backward, CPU seconds.

    python tests/benchmarks/bench_batchnorm.py [--cameras 2 8] [--repeats 5] [--threads 1]

The norms alone at some sizes of MobileNetV2, then a step of all of it at 128×64 with 64 images, channels last. The ways
take turns, and the least of each counts; in brackets, as a multiple of torch's:

* torch: `F.batch_norm`, which one rank alone uses;
* var_mean: global batch norm as it was, by `torch.var_mean` and with full-size tensors of single terms;
* global: global batch norm as several ranks use it, without their exchange;
* N cameras: batch norm by camera, without exchange too; images of the cameras are mixed;
* N sorted: `F.batch_norm` over each camera's images, which must lie side by side for that, put together again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from embae.trainer.model.batch_norm import GlobalBatchNormFunction, use_global_batch_norm
from embae.trainer.model.camera_batch_norm import CameraBatchNorm
from embae.trainer.model.camera_tables import MEAN, TrainingCameras, extend_tables, has_table

IMAGES, SIZE = 64, (128, 64)
MOST = 64  # cameras
SHAPES = [(32, 64, 32), (96, 64, 32), (144, 32, 16), (192, 16, 8), (960, 4, 2)]
Way = Callable[[Any, Tensor], Tensor]


def columns(values: Tensor, x: Tensor) -> Tensor:
    """Per-channel values in a shape that broadcasts with x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


class VarMean(torch.autograd.Function):
    """Global batch norm as it was, without exchange and running statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        var, mean = torch.var_mean(x, [0, 2, 3], correction=0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True])
        scale = torch.rsqrt(var + ctx.eps)
        factor = weight * scale / (x.numel() / x.shape[1])
        slope = factor * scale * grad_weight
        grad_x -= columns(slope, x) * x + columns(factor * grad_bias - slope * mean, x)
        return grad_x, grad_weight, grad_bias, None


def plain(norm: Any, x: Tensor) -> Tensor:
    """torch's own."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum, norm.eps)


def var_mean(norm: Any, x: Tensor) -> Tensor:
    """As it was."""
    return VarMean.apply(x, norm.weight, norm.bias, norm.eps)


def everyone(norm: Any, x: Tensor) -> Tensor:
    """Global batch norm."""
    use_global_batch_norm(norm, sync=False)
    return GlobalBatchNormFunction.apply(x, norm.weight, norm.bias, norm)


def by_camera(cameras: int, norm: Any, x: Tensor) -> Tensor:
    """Batch norm by camera."""
    if not has_table(norm, MEAN):
        extend_tables(norm, max(cameras, MOST), trains=True)
    use_global_batch_norm(norm, sync=False)
    training = TrainingCameras(torch.arange(IMAGES) % cameras, torch.arange(cameras))
    return CameraBatchNorm.apply(x, norm.weight, norm.bias, norm, training)


def sorted_by_camera(cameras: int, norm: Any, x: Tensor) -> Tensor:
    """A loop of torch's over cameras."""
    counts = torch.bincount(torch.arange(IMAGES) % cameras).tolist()
    return torch.cat([plain(norm, part) for part in x.split(counts)])


def compare(ways: dict[str, Callable[[], Any]], repeats: int) -> str:
    """The least CPU seconds of each, and how many times the first one's they are."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(repeats + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if turn:
                least[name] = min(least[name], time.process_time() - began)
    first = least[next(iter(least))]
    return ", ".join(f"{name} {1e3 * taken:.1f} ms ({taken / first:.2f})" for name, taken in least.items())


def alone(ways: dict[str, Way], shape: tuple[int, ...], repeats: int) -> str:
    """The norms by themselves on inputs of a shape, forward and backward."""
    norm, random = nn.BatchNorm2d(shape[1]), torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=random).contiguous(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()

    def step(way: Way) -> None:
        x.grad = None
        way(norm, x).backward(grad)

    return compare({name: partial(step, way) for name, way in ways.items()}, repeats)


def together(ways: dict[str, Way], repeats: int) -> str:
    """A whole network's forward and backward."""
    network = timm.create_model("mobilenetv2_100", num_classes=0).to(memory_format=torch.channels_last).train()
    x = torch.randn(IMAGES, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(network(x).shape)

    def step(way: Way) -> None:
        BatchNormAct2d.forward = lambda norm, x: norm.act(norm.drop(way(norm, x)))  # type: ignore[method-assign]
        network(x).backward(grad)

    return compare({name: partial(step, way) for name, way in ways.items()}, repeats)


def main() -> None:
    """Prints a line a size, and one for the whole network."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cameras", type=int, nargs="*", default=[2, 8])
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    ways: dict[str, Way] = {"torch": plain, "var_mean": var_mean, "global": everyone}
    for cameras in chosen.cameras:
        ways[f"{cameras} cameras"] = partial(by_camera, cameras)
        ways[f"{cameras} sorted"] = partial(sorted_by_camera, cameras)
    for shape in SHAPES:
        print(f"{IMAGES}×{'×'.join(map(str, shape))}: {alone(ways, (IMAGES, *shape), chosen.repeats)}", flush=True)
    print(f"a step of MobileNetV2: {together(ways, chosen.repeats)}", flush=True)


if __name__ == "__main__":
    main()
