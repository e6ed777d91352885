"""Ranks that are threads of the test's process, for work on arrays; see `ranks.py` for real ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np

from embae.trainer.retrieval.work_split import WorkSplit


def together(world_size: int, run: Callable[[WorkSplit], Any]) -> list[Any]:
    """What each rank returns."""
    meet, given = Barrier(world_size), {}

    def work(number: int) -> Any:
        def add(array: np.ndarray) -> np.ndarray:
            meet.wait()
            given[number] = array
            meet.wait()
            return sum(given.values())  # type: ignore[return-value]

        return run(WorkSplit(number, world_size, add, threads=1))

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size)))
