"""Work on arrays that several ranks do together, without torch: who does what, and how it goes together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embae.datasets.plan import share


def _alone(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Spread:
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
    threads: int = min(16, len(os.sched_getaffinity(0)))

    def own(self, total: int) -> slice:
        """Which of `total` things are this rank's."""
        return share(total, self.rank, self.world_size)
