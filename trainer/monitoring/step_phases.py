"""The phases of a training step by name, for profiles and benchmarks. A run that is not measured has no overhead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule, tensorboard_trace_handler

from embae.datasets.loading.batch import Batch, Loader

Phase = Callable[[str], AbstractContextManager[Any]]
"""Gives the context in which a phase runs: load, forward, backward or optimizer."""


class TimedLoader:
    """A loader whose batches are waited for inside the phase ``load``."""

    def __init__(self, loader: Loader, phase: Phase):
        self._loader, self._phase, self.name = loader, phase, loader.name

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            with self._phase("load"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """Closes the loader."""
        self._loader.close()


def time_methods(owner: Any, phase: Phase, **phases: str) -> None:
    """From now on, runs methods of one object inside phases.

    Args:
        owner: The object.
        phase: Gives the context.
        phases: Method → phase.
    """
    for method, name in phases.items():
        setattr(owner, method, _inside(phase, name, getattr(owner, method)))


def _inside(phase: Phase, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return function(*args, **kwargs)

    return inside


class Phased(Protocol):
    """Something that can run its work inside phases."""

    def time_phases(self, phase: Phase) -> None:
        """From now on, runs its work inside phases."""


SKIP, WARM_UP, RECORD = 5, 1, 4  # steps


@contextmanager
def profile_steps(stage: Phased, folder: Path) -> Iterator[Callable[[], None]]:
    """Records steps 7 to 10 after a stage's start; the steps after them are not recorded.

    Args:
        stage: Has not trained yet.
        folder: Where the trace is written, as ``<host>_<process>.<time>.pt.trace.json``.

    Yields:
        A function to call after each step.
    """
    stage.time_phases(record_function)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, schedule=schedule(wait=SKIP, warmup=WARM_UP, active=RECORD, repeat=1),
                 on_trace_ready=tensorboard_trace_handler(str(folder))) as recorder:
        yield recorder.step
