"""The phases of a training step by name, for who measures them: nothing is in the way of a run that nobody measures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from embae.datasets.batch import Batch, Loader

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


def around(owner: Any, phase: Phase, **names: str) -> None:
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
