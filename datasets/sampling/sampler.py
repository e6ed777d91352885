"""A sampler: which images make up the batch of a step, as a pure function of (seed, stage, step).

Every rank computes the same global batches, without communication, and takes its part. So batches do not depend on
world size, workers or threads, and the position in the data is one integer: the step.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from embae.datasets.sampling.view import View


class Sampler(Protocol):
    """Global batches of a view."""

    view: View
    batch: int
    """Rows of a global batch at most."""

    def plan(self, step: int) -> np.ndarray:
        """Rows of the view in the global batch of this step, `(B,)` int64."""
        ...


def share(rows: int, part: int, parts: int) -> slice:
    """Where one part of a batch is: ⌊part·B/parts⌋ … ⌊(part+1)·B/parts⌋, so part sizes differ by at most one."""
    return slice(part * rows // parts, (part + 1) * rows // parts)
