"""Reads the encoded bytes of single images from shards, and checks them."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict

from embae.datasets.errors import DataError
from embae.datasets.index import Index


class ShardReader:
    """Reads images of one dataset by row, in any order.

    Use one reader per thread: positions are not shared (``pread``), but the open files are.

    Args:
        index: The dataset.
        open_files: How many shards are kept open, the least recently read closed first.
    """

    def __init__(self, index: Index, open_files: int = 64) -> None:
        self.index = index
        self._most = open_files
        self._files: OrderedDict[int, int] = OrderedDict()  # shard → file descriptor

    def read(self, row: int) -> bytes:
        """The encoded image of a row of the index.

        Raises:
            DataError: The shard cannot be read, ends too early, or holds other bytes than the index says.
        """
        index = self.index
        size = int(index.size[row])
        try:
            data = os.pread(self._file(int(index.shard[row])), size, int(index.offset[row]))
        except OSError as error:
            raise DataError(f"{self._where(row)}: cannot be read ({error.strerror}); {_REMEDY}") from error
        if len(data) != size:
            raise DataError(f"{self._where(row)}: found {len(data):,} bytes, wanted {size:,}; {_REMEDY}")
        if (found := zlib.crc32(data)) != (wanted := int(index.crc32[row])):
            raise DataError(f"{self._where(row)}: checksum {found:08x}, wanted {wanted:08x}; {_REMEDY}")
        return data

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        descriptor = os.open(self.index.root / self.index.shards[shard], os.O_RDONLY)
        self._files[shard] = descriptor
        if len(self._files) > self._most:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _where(self, row: int) -> str:
        index = self.index
        return f"{index.root / index.shards[int(index.shard[row])]}: image {index.key(row)} (row {row})"

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


_REMEDY = "see what else is damaged with embae inspect --verify, then copy the shard again or shard the dataset again"
