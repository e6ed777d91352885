"""The phases of a training step by name, for who measures them: nothing is in the way of a run that nobody measures."""

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
"""Gives the context that a phase is in: load, forward, backward or optimizer."""


class LoaderAround:
    """A loader each of whose batches is waited for within the phase ``load``."""

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


def timed_by(owner: Any, phase: Phase, **names: str) -> None:
    """Has methods of one object run within phases from now on.

    Args:
        owner: The object.
        phase: Gives the context.
        names: Method → phase.
    """
    for method, name in names.items():
        setattr(owner, method, _within(phase, name, getattr(owner, method)))


def _within(phase: Phase, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(act)
    def within(*words: Any, **keys: Any) -> Any:
        with phase(name):
            return act(*words, **keys)

    return within


class Measured(Protocol):
    """What runs in phases."""

    def around(self, phase: Phase) -> None:
        """Has its work run within phases from now on."""


SKIP, WARM_UP, RECORD = 5, 1, 4  # steps


@contextmanager
def profiled(stage: Measured, folder: Path) -> Iterator[Callable[[], None]]:
    """Within it steps 7 to 10 of a stage's start are recorded; later ones are not.

    Args:
        stage: Before it trains.
        folder: Where the trace goes, ``<host>_<process>.<time>.pt.trace.json``.

    Yields:
        What to call after each step.
    """
    stage.around(record_function)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, schedule=schedule(wait=SKIP, warmup=WARM_UP, active=RECORD, repeat=1),
                 on_trace_ready=tensorboard_trace_handler(str(folder))) as recorder:
        yield recorder.step
