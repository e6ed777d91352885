"""TODO step_rates."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Clock:
    """Rates over a logging interval: images/s, shares of time spent waiting for data and on checkpoints, time left.

    Args:
        start: First step of the stage in this process.
        stop: Step past the last one.
    """

    def __init__(self, start: int, stop: int):
        self._begin = self._last = time.perf_counter()
        self._start, self._stop = start, stop
        self._images, self.waited, self._saving = 0, 0.0, 0.0

    def wait(self, seconds: float) -> None:
        """Time spent waiting for a batch."""
        self.waited += seconds

    def save(self, seconds: float) -> None:
        """Time that a checkpoint kept the loop waiting."""
        self._saving += seconds

    def seen(self, images: int) -> None:
        """Images of the global batch that a step took."""
        self._images += images

    def read(self, step: int) -> dict[str, float]:
        """The interval's rates; the next interval starts."""
        now = time.perf_counter()
        took = max(now - self._last, 1e-9)
        rates = {
            "images_per_s": self._images / took, "waiting_percent": 100 * self.waited / took,
            "saving_percent": 100 * self._saving / took, "memory_gib": memory_gib(),
            "seconds_left": (now - self._begin) / (step - self._start) * (self._stop - step),
        }
        self._last, self._images, self.waited, self._saving = now, 0, 0.0, 0.0
        return rates


def memory_gib() -> float:
    """Peak memory of this rank: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def line(stage: str, step: int, stop: int, values: dict[str, float]) -> str:
    """The console line of a logging interval."""
    losses = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", "right", "near_memory") if name in values)
    left = values["seconds_left"]
    saving = f"saving {values['saving_percent']:.1f} %  " if values["saving_percent"] else ""
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (f"[{stage}] step {step}/{stop}  {losses}  lr {values['lr']:.2e}  {values['images_per_s']:.0f} images/s  "
            f"waiting {values['waiting_percent']:.0f} %  {saving}{values['memory_gib']:.1f} GiB  {time_left} left")
