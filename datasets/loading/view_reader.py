"""Reads the encoded images of a view by offset, and verifies them."""

from __future__ import annotations

from itertools import count

import numpy as np
from PIL import Image

from embae.datasets.images.encoding import decode_jpeg
from embae.datasets.images.jpeg import check_jpeg
from embae.datasets.index.shard_reader import ShardReader, describe_row
from embae.datasets.loading.batch import Work
from embae.datasets.loading.prefetch import Prefetch
from embae.datasets.sampling.view import View


class ViewReader:
    """Reads images of several datasets by their row in a view.

    Args:
        view: The images.
        work: The batches that will be read in order, if known: remote shards are then downloaded in advance.

    Raises:
        DataError: While reading, if bytes do not match their checksum.
    """

    def __init__(self, view: View, work: Work | None = None):
        self._view = view
        is_remote = any(index.copies for index in view.indexes)
        self._prefetch, self._batches = Prefetch(work) if work and is_remote else None, count()
        # A process may often have only 1,024 open files, and reads both for training and for scoring.
        open_files = max(1, 256 // len(view.indexes))
        self._readers = [ShardReader(index, open_files) for index in view.indexes]

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Reads the encoded images of some rows, in order."""
        if self._prefetch:
            self._prefetch.advance_to(next(self._batches))
        return [self._readers[dataset].read(row) for dataset, row in zip(*self._view.locate(rows), strict=True)]

    def decode(self, row: int) -> Image.Image:
        """Decodes one image with Pillow after checking its segments, to find the one that cannot be decoded.

        Raises:
            DataError: It is this image.
        """
        dataset, local = (int(value[0]) for value in self._view.locate(np.array([row])))
        data, name = self._readers[dataset].read(local), describe_row(self._view.indexes[dataset], local)
        check_jpeg(data, name)
        return decode_jpeg(data, name)

    def close(self) -> None:
        """Closes the shards."""
        if self._prefetch:
            self._prefetch.close()
        for reader in self._readers:
            reader.close()
