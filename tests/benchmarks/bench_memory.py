"""The memory of identities, forward, backward and update, against a linear classifier of the same size and its update.

    python tests/benchmarks/bench_memory.py [--entries 1000 13000 100000] [--batch 256] [--size 1280] [--repeats 5]

One thread or one GPU, single precision. The classifier is `nn.Linear` with cross-entropy and a step of Adam. They take
turns; ratios are of medians. Memory is what each takes at its peak beside the embeddings: of a process of its own on a
CPU, of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from embae.datasets.loading.batch import Batch
from embae.datasets.sampling.view import PERSON
from embae.trainer.losses.camera_proxies import ProxyLoss
from embae.trainer.losses.cluster_memory import MemoryLoss
from embae.trainer.runtime.distributed import gather_rows

CAMERAS = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class People:
    """An image on each of four cameras of every person of one dataset."""

    names = ("people",)

    def __init__(self, identities: int):
        first = CAMERAS * np.arange(identities)
        self.identities = [np.stack([first, first + CAMERAS, np.full(identities, CAMERAS)], 1)]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(rows), int), rows

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        return rows % CAMERAS if name == "camid" else np.full(len(rows), PERSON)

    def identity(self, rows: np.ndarray) -> np.ndarray:
        return rows // CAMERAS


def memory(keys: MemoryLoss, entries: int, batch: int, size: int) -> Callable[[], None]:
    """A step of the memory with so many entries."""
    people: Any = People(entries // (CAMERAS if isinstance(keys, ProxyLoss) else 1))
    made = keys.build_state(people, size)
    made.buffers.to(DEVICE)
    made.entries.copy_(F.normalize(torch.randn(made.entries.shape, device=DEVICE)))
    rows, z = (CAMERAS * np.arange(batch // 4)[:, None] + np.arange(4)).reshape(-1), _embeddings(batch, size)
    part, broken = Batch(z, rows, rows, slice(0, batch), 0, people), torch.zeros((), device=DEVICE)

    def step() -> None:
        z.grad = None
        made.loss(z, part)[0].backward()
        made.update(part, broken, gather_rows)

    return step


def classifier(entries: int, batch: int, size: int) -> Callable[[], None]:
    """A step of a linear classifier of so many classes."""
    made, z = torch.nn.Linear(size, entries, device=DEVICE), _embeddings(batch, size)
    optimizer = torch.optim.Adam(made.parameters(), fused=True)
    identity = torch.arange(batch, device=DEVICE) // 4

    def step() -> None:
        z.grad = None
        optimizer.zero_grad()
        F.cross_entropy(made(z), identity).backward()
        optimizer.step()

    return step


MADE: dict[str, Callable[[int, int, int], Callable[[], None]]] = {
    "classifier": classifier,
    "memory": lambda *sizes: memory(MemoryLoss(), *sizes),
    "proxies": lambda *sizes: memory(ProxyLoss(), *sizes),
}


def _embeddings(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, size, device=DEVICE, requires_grad=True)


def seconds(step: Callable[[], None]) -> float:
    """Of one step."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(name: str, entries: int, batch: int, size: int) -> float:
    """MiB that it takes, weights and moments included, in a process of its own."""
    torch.set_num_threads(1)
    MADE[name](8, 8, 8)()  # what libraries take at their first call
    before = _high_water()
    step = MADE[name](entries, batch, size)
    for _ in range(2):  # an optimizer has its moments after the first
        step()
    return (_high_water() - before) / 2**20


def _high_water() -> int:
    """Bytes. On a CPU not `getrusage`'s, which a child has from its parent."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Prints a line a size."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--entries", type=int, nargs="*", default=[1000, 13000, 100000])
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--size", type=int, default=1280)
    arguments.add_argument("--repeats", type=int, default=5)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    for entries in chosen.entries:
        sizes = entries, chosen.batch, chosen.size
        steps = {name: make(*sizes) for name, make in MADE.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(chosen.repeats + 1):
            for name, step in steps.items():
                took = seconds(step)
                if repeat:  # the first one warms up
                    times[name].append(took)
        middle = {name: statistics.median(found) for name, found in times.items()}
        del steps, step
        kept = {}
        for name in MADE:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                kept[name] = pool.apply(peak, (name, *sizes))
        first, most = middle["classifier"], kept["classifier"]
        said = [f"{name} {1e3 * middle[name]:.1f} ms ({middle[name] / first:.2f}), {kept[name]:.0f} MiB "
                f"({kept[name] / most:.2f})" for name in MADE]
        print(f"{entries} entries, {DEVICE}: {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
