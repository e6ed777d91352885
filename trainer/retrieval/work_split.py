"""Work on arrays that several ranks do together, without torch: who does what, and how it goes together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from embae.datasets.sampling.plan import share


def _alone(array: np.ndarray) -> np.ndarray:
    return array


def threads(processes: int = 1) -> int:
    """What each of some processes on this machine may use: its share of the CPUs, 16 at most."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // processes))


@dataclass(frozen=True)
class WorkSplit:
    """A rank's part in such work; by default that of the only one.

    Attributes:
        rank, world_size: This one's number, and how many there are.
        add: The sum over the ranks of an array that each of them gives in the same shape and type. What is added is
            whole numbers, or numbers where all other ranks give zeros: exact in any order.
        threads: What this rank may use; neither they nor the ranks change a result.
    """

    rank: int = 0
    world_size: int = 1
    add: Callable[[np.ndarray], np.ndarray] = _alone
    threads: int = field(default_factory=threads)

    def own(self, total: int) -> slice:
        """Which of `total` things are this rank's."""
        return share(total, self.rank, self.world_size)
