"""Images in a fixed order, for extraction."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.view import View


class SequentialSampler:
    """Each of some rows of a view once, in order. The last batch may be smaller.

    Args:
        view: What to read.
        batch: Images per batch.
        rows: `(N,)`, the rows.
    """

    def __init__(self, view: View, *, batch: int, rows: np.ndarray):
        self.view, self.batch, self._rows = view, batch, rows

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self.batch)

    def plan(self, step: int) -> np.ndarray:
        """Rows of the batch, `(B,)` int64, fewer in the last one."""
        return self._rows[step * self.batch:(step + 1) * self.batch]
