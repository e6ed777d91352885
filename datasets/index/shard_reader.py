"""Reads the encoded bytes of single images from shards, and verifies them."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS, declared_size
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.table import TABLE


class _Damaged(DataError):
    """The bytes differ from those that were indexed."""


class ShardReader:
    """Reads images of one dataset by row, in any order.

    Use one reader per thread: positions are not shared (``pread``), but the open files are.

    Args:
        index: The dataset.
        open_files: How many shards stay open; the least recently read is closed first. At most two of a remote dataset,
            as the cache cannot remove an open copy to make room for others.
    """

    def __init__(self, index: Index, open_files: int = 64) -> None:
        self.index = index
        self._most = min(open_files, 2) if index.copies else open_files
        self._files: OrderedDict[int, int] = OrderedDict()  # shard → file descriptor

    def read(self, row: int) -> bytes:
        """Reads the encoded image of a row of the index. A damaged copy of a remote shard is downloaded once more.

        Raises:
            DataError: The shard cannot be read, ends too early, or contains other bytes than those that were indexed;
                or they are not a JPEG of the size in the index, or one with more than `MAX_PIXELS`.
        """
        index = self.index
        shard = int(index.shard[row])
        if not 0 <= shard < len(index.shards):
            raise DataError(f"{describe_row(index, row)}: the index has {len(index.shards)} shards, none with number "
                            f"{shard}; copy the index again or shard the dataset again")
        try:
            data = self._bytes(row, shard)
        except _Damaged:
            if not index.discard_copy(shard, self._files[shard]):
                raise
            os.close(self._files.pop(shard))
            data = self._bytes(row, shard)
        # A checksum does not protect from a hostile shard, so check the size by which decoders allocate memory.
        declared, indexed = declared_size(data), (int(index.height[row]), int(index.width[row]))
        if declared != indexed or indexed[0] * indexed[1] > MAX_PIXELS:
            raise DataError(f"{describe_row(index, row)}: {_describe_size(declared)}, the index says {indexed}; "
                            f"expected a JPEG of that size, of at most {MAX_PIXELS:,} pixels; shard the dataset again")
        return data

    def _bytes(self, row: int, shard: int) -> bytes:
        index, size = self.index, int(self.index.size[row])
        try:
            data = os.pread(self._file(shard), size, int(index.offset[row]))
        except OSError as error:
            raise DataError(f"{describe_row(index, row)}: cannot be read ({error.strerror}); {_REMEDY}") from error
        if len(data) != size:
            raise _Damaged(f"{describe_row(index, row)}: found {len(data):,} bytes, expected {size:,}; {_REMEDY}")
        if (checksum := zlib.crc32(data)) != (expected := int(index.crc32[row])):
            raise _Damaged(f"{describe_row(index, row)}: checksum {checksum:08x}, expected {expected:08x}; {_REMEDY}")
        return data

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        descriptor = self.index.open_shard(shard)
        self._files[shard] = descriptor
        if len(self._files) > self._most:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Closes the shards; `read` opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def describe_row(index: Index, row: int) -> str:
    """An image in messages: its shard, key and row."""
    shard = int(index.shard[row])
    name = index.shards[shard] if 0 <= shard < len(index.shards) else TABLE
    return f"{index.root / name}: image {index.key(row)} (row {row})"


def _describe_size(size: tuple[int, int] | None) -> str:
    return "not a JPEG" if size is None else f"has (height, width) {size}"


_REMEDY = "see what else is damaged with embae inspect --verify, then copy the shard again or shard the dataset again"
