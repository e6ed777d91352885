"""Batch-hard triplet loss, forward and backward, against pytorch-metric-learning's: seconds and peak memory.

    pip install pytorch-metric-learning
    python tests/benchmarks/bench_losses.py [--batches 72 1024 8192] [--repeats 5]

Embeddings of 128 numbers, K = 4, one thread. The two take turns, and both are asked for the same loss first. Memory is
what a process of its own takes on top of what it had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from embae.trainer.losses.triplet import batch_hard

MARGIN = 0.3  # the hinge: what both have


def ours() -> Callable[[Tensor, Tensor], Tensor]:
    """This project's."""
    return lambda z, identity: batch_hard(z, identity, MARGIN)[0]


def peer() -> Callable[[Tensor, Tensor], Tensor]:
    """pytorch-metric-learning's, as its documentation puts it together for batch-hard over plain distances."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    distance = LpDistance(normalize_embeddings=False)
    miner = BatchHardMiner(distance=distance)
    loss = TripletMarginLoss(margin=MARGIN, distance=distance, reducer=MeanReducer())
    return lambda z, identity: loss(z, identity, miner(z, identity))


LOSSES = {"embae": ours, "pytorch-metric-learning": peer}


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Embeddings and identities."""
    draw = torch.Generator().manual_seed(size)
    identity = torch.arange(size // 4).repeat_interleave(4)
    noise = torch.randn(size, 128, generator=draw)
    return noise + 0.3 * torch.randn(size // 4, 128, generator=draw)[identity], identity


def step(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, identity: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    z.grad = None
    began = time.perf_counter()
    loss(z, identity).backward()
    return time.perf_counter() - began


def peak(name: str, size: int) -> float:
    """MiB that one step takes, in a process of its own."""
    torch.set_num_threads(1)
    loss, (z, identity) = LOSSES[name](), batch(size)
    step(loss, batch(72)[0].requires_grad_(), batch(72)[1])
    before = _high_water()
    step(loss, z.requires_grad_(), identity)
    return (_high_water() - before) / 1024


def _high_water() -> int:
    """KiB. Not `getrusage`'s, which a child has from its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def main() -> None:
    """Prints a line a batch size."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, nargs="*", default=[72, 1024, 8192])
    arguments.add_argument("--repeats", type=int, default=5)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    for size in chosen.batches:
        z, identity = batch(size)
        z.requires_grad_()
        made = {name: make() for name, make in LOSSES.items()}
        values = [loss(z, identity).item() for loss in made.values()]
        assert abs(values[0] - values[1]) < 1e-4 * values[0], values
        times: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(chosen.repeats):
            for name, loss in made.items():
                times[name].append(step(loss, z, identity))
        middle = {name: statistics.median(seconds) for name, seconds in times.items()}
        memory = {}
        for name in made:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory[name] = pool.apply(peak, (name, size))
        said = ", ".join(f"{name} {1e3 * middle[name]:.1f} ms, {memory[name]:.0f} MiB" for name in made)
        ratio = middle["pytorch-metric-learning"] / middle["embae"]
        print(f"batch {size}: {said}; {ratio:.1f} times as fast", flush=True)


if __name__ == "__main__":
    main()
