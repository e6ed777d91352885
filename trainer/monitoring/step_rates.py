"""How fast a stage trains: its rates over each logging interval, and the console line that shows them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping

import torch

from embae.trainer.losses.registry import CONSOLE


class Clock:
    """Measures a logging interval: images/s, shares of time spent on waiting for data and on checkpoints, time left.

    Args:
        start: First step of the stage in this process.
        stop: Step after the last one.
    """

    def __init__(self, start: int, stop: int):
        self._begin = self._last = time.perf_counter()
        self._start, self._stop = start, stop
        self._images, self._waiting, self._saving = 0, 0.0, 0.0

    def add_waiting(self, seconds: float) -> None:
        """Adds time that the step loop waited for a batch."""
        self._waiting += seconds

    def add_saving(self, seconds: float) -> None:
        """Adds time that the step loop waited for a checkpoint."""
        self._saving += seconds

    def add_images(self, images: int) -> None:
        """Adds the images of a step's global batch."""
        self._images += images

    def read(self, step: int) -> dict[str, float]:
        """Gives the interval's rates, and starts the next interval."""
        now = time.perf_counter()
        interval = max(now - self._last, 1e-9)
        rates = {
            "images_per_s": self._images / interval, "waiting_percent": 100 * self._waiting / interval,
            "saving_percent": 100 * self._saving / interval, "memory_gib": memory_gib(),
            "seconds_left": (now - self._begin) / (step - self._start) * (self._stop - step),
        }
        self._last, self._images, self._waiting, self._saving = now, 0, 0.0, 0.0
        return rates


def memory_gib() -> float:
    """Peak memory of this rank: of its GPU, or of the process if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def format_step(stage: str, step: int, stop: int, values: Mapping[str, float]) -> str:
    """The console line of a logging interval.

    Args:
        stage: The stage.
        step: Steps done.
        stop: Steps of the whole stage.
        values: Losses, learning rate and rates by their names in metrics.jsonl.
    """
    losses = " ".join(f"{name} {values[name]:.4f}" for name in ("loss", *CONSOLE) if name in values)
    left = values["seconds_left"]
    saving = f"saving {values['saving_percent']:.1f} %  " if values["saving_percent"] else ""
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (f"[{stage}] step {step}/{stop}  {losses}  lr {values['lr']:.2e}  {values['images_per_s']:.0f} images/s  "
            f"waiting {values['waiting_percent']:.0f} %  {saving}{values['memory_gib']:.1f} GiB  {time_left} left")
