"""What a person sees of a running stage: console, TensorBoard, metrics.jsonl. Rank 0 alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from embae.datasets.augment import ImageSpec


class Monitor:
    """Records of a run; does nothing on other ranks than the first.

    Args:
        run: The run folder.
        first: Whether this rank writes.
    """

    def __init__(self, run: Path, first: bool):
        self._first = first
        if first:
            self._board = SummaryWriter(str(run / "tensorboard"), flush_secs=10)
            self._lines = (run / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def say(self, text: str) -> None:
        """A line on the console."""
        if self._first:
            print(text, flush=True)

    def record(self, kind: str, stage: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and a TensorBoard curve for each number."""
        if self._first:
            self._lines.write(json.dumps({"kind": kind, "stage": stage, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{stage}/{kind}/{name}", value, step)

    def images(self, stage: str, step: int, images: Tensor, spec: ImageSpec) -> None:
        """A grid of augmented inputs, as the model gets them."""
        if self._first:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
            self._board.add_images(f"{stage}/inputs", (images[:32].cpu() * std + mean).clamp(0, 1), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._first:
            self._board.close()
            self._lines.close()


class Clock:
    """Rates over a logging interval: images/s, the share of time spent waiting for data, time left.

    Args:
        start: First step of the stage in this process.
        stop: Step past the last one.
    """

    def __init__(self, start: int, stop: int):
        self._begin = self._last = time.perf_counter()
        self._start, self._stop = start, stop
        self._images, self.waited = 0, 0.0

    def wait(self, seconds: float) -> None:
        """Time spent waiting for a batch."""
        self.waited += seconds

    def seen(self, images: int) -> None:
        """Images of the global batch that a step took."""
        self._images += images

    def read(self, step: int) -> dict[str, float]:
        """The interval's rates; the next interval starts."""
        now = time.perf_counter()
        took = max(now - self._last, 1e-9)
        rates = {
            "images_per_s": self._images / took, "waiting_percent": 100 * self.waited / took,
            "memory_gib": memory_gib(),
            "seconds_left": (now - self._begin) / (step - self._start) * (self._stop - step),
        }
        self._last, self._images, self.waited = now, 0, 0.0
        return rates


def memory_gib() -> float:
    """Peak memory of this rank: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def line(stage: str, step: int, stop: int, values: dict[str, float]) -> str:
    """The console line of a logging interval."""
    losses = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", "right") if name in values)
    left = values["seconds_left"]
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (f"[{stage}] step {step}/{stop}  {losses}  lr {values['lr']:.2e}  {values['images_per_s']:.0f} images/s  "
            f"waiting {values['waiting_percent']:.0f} %  {values['memory_gib']:.1f} GiB  {time_left} left")
