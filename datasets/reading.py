"""The encoded bytes of a view's images, read by offset and checked."""

from __future__ import annotations

import numpy as np

from embae.datasets.shard_reader import ShardReader
from embae.datasets.view import View


class ViewReader:
    """Reads images of several datasets by their row in a view.

    Raises:
        DataError: While reading, when bytes do not match their checksum.
    """

    def __init__(self, view: View):
        self._view = view
        # A process may often have only 1,024 files open, and reads for training and for scoring.
        open_files = max(1, 256 // len(view.indexes))
        self._readers = [ShardReader(index, open_files) for index in view.indexes]

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images of these rows, in order."""
        return [self._readers[dataset].read(row) for dataset, row in zip(*self._view.locate(rows), strict=True)]

    def close(self) -> None:
        """Closes the shards."""
        for reader in self._readers:
            reader.close()
