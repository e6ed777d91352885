"""The encoded bytes of a view's images, read by offset and checked."""

from __future__ import annotations

from itertools import count

import numpy as np
from PIL import Image

from embae.datasets.images.encoding import decoded
from embae.datasets.images.jpeg import check_jpeg
from embae.datasets.index.shard_reader import ShardReader, where
from embae.datasets.loading.batch import Work
from embae.datasets.loading.prefetch import Ahead
from embae.datasets.sampling.view import View


class ViewReader:
    """Reads images of several datasets by their row in a view.

    Args:
        view: The images.
        work: The batches that will be read in order, where they are known: far shards are then fetched ahead of need.

    Raises:
        DataError: While reading, when bytes do not match their checksum.
    """

    def __init__(self, view: View, work: Work | None = None):
        self._view = view
        far = work and any(index.copies for index in view.indexes)
        self._ahead, self._batches = Ahead(work) if work and far else None, count()
        # A process may often have only 1,024 files open, and reads for training and for scoring.
        open_files = max(1, 256 // len(view.indexes))
        self._readers = [ShardReader(index, open_files) for index in view.indexes]

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images of these rows, in order."""
        if self._ahead:
            self._ahead.reached(next(self._batches))
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
        if self._ahead:
            self._ahead.close()
        for reader in self._readers:
            reader.close()
