"""How ranks share work on arrays, without torch: each rank's share of the rows, and how results are put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from embae.datasets.sampling.sampler import share


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _called(compute: Callable[[], np.ndarray]) -> np.ndarray:
    return compute()


def threads(processes: int = 1) -> int:
    """Number of threads for each of several processes on this machine: its share of the CPUs, at most 16."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // processes))


@dataclass(frozen=True)
class WorkSplit:
    """One rank's part in shared work; by default that of the only rank.

    Attributes:
        rank, world_size: The number of this rank, and how many ranks there are.
        add: Sums an array over the ranks; each rank passes the same shape and type. The summands are whole numbers, or
            every rank but one passes zero, so the sum is exact in any order.
        threads: Number of threads that this rank may use; neither threads nor ranks change a result.
        on_first: Computes an array on the first rank alone and returns it on each rank; an error ends each rank.
    """

    rank: int = 0
    world_size: int = 1
    add: Callable[[np.ndarray], np.ndarray] = _unchanged
    threads: int = field(default_factory=threads)
    on_first: Callable[[Callable[[], np.ndarray]], np.ndarray] = _called

    def share(self, total: int) -> slice:
        """This rank's share of `total` rows."""
        return share(total, self.rank, self.world_size)
