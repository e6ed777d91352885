"""The encoded bytes of a view's images, read by offset and checked."""

from __future__ import annotations

import numpy as np
from PIL import Image

from embae.datasets.images import decoded
from embae.datasets.jpeg import check_jpeg
from embae.datasets.shard_reader import ShardReader, where
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

    def decode(self, row: int) -> Image.Image:
        """An image by Pillow, its segments looked at too, to say by name which of a batch cannot be decoded.

        Raises:
            DataError: This one.
        """
        dataset, local = (int(value[0]) for value in self._view.locate(np.array([row])))
        data, name = self._readers[dataset].read(local), where(self._view.indexes[dataset], local)
        check_jpeg(data, name)
        return decoded(data, name)

    def close(self) -> None:
        """Closes the shards."""
        for reader in self._readers:
            reader.close()
