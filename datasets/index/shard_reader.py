"""Reads the encoded bytes of single images from shards, and checks them."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS, declared_size
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.table import TABLE


class _Damaged(DataError):
    """The bytes are not those of the index."""


class ShardReader:
    """Reads images of one dataset by row, in any order.

    Use one reader per thread: positions are not shared (``pread``), but the open files are.

    Args:
        index: The dataset.
        open_files: How many shards are kept open, the least recently read closed first. Of a far dataset it is two, as
            an open copy cannot make room for others.
    """

    def __init__(self, index: Index, open_files: int = 64) -> None:
        self.index = index
        self._most = min(open_files, 2) if index.copies else open_files
        self._files: OrderedDict[int, int] = OrderedDict()  # shard → file descriptor

    def read(self, row: int) -> bytes:
        """The encoded image of a row of the index. A far shard whose copy is damaged is fetched once more.

        Raises:
            DataError: The shard cannot be read, ends too early, or holds other bytes than the index says; or the bytes
                are not a JPEG of the size that the index says, or one of more than `MAX_PIXELS`.
        """
        index = self.index
        shard = int(index.shard[row])
        if not 0 <= shard < len(index.shards):
            raise DataError(f"{where(index, row)}: the index has {len(index.shards)} shards, none of number {shard}; "
                            "copy the index again or shard the dataset again")
        try:
            data = self._bytes(row, shard)
        except _Damaged:
            if not index.discard_copy(shard, self._files[shard]):
                raise
            os.close(self._files.pop(shard))
            data = self._bytes(row, shard)
        # Who makes a shard makes its checksums too: what decoders take memory by is what the index says, and small.
        declared, indexed = declared_size(data), (int(index.height[row]), int(index.width[row]))
        if declared != indexed or indexed[0] * indexed[1] > MAX_PIXELS:
            raise DataError(f"{where(index, row)}: {_told(declared)}, the index says {indexed}; wanted a JPEG as it "
                            f"says, of at most {MAX_PIXELS:,} pixels; shard the dataset again")
        return data

    def _bytes(self, row: int, shard: int) -> bytes:
        index, size = self.index, int(self.index.size[row])
        try:
            data = os.pread(self._file(shard), size, int(index.offset[row]))
        except OSError as error:
            raise DataError(f"{where(index, row)}: cannot be read ({error.strerror}); {_REMEDY}") from error
        if len(data) != size:
            raise _Damaged(f"{where(index, row)}: found {len(data):,} bytes, wanted {size:,}; {_REMEDY}")
        if (found := zlib.crc32(data)) != (wanted := int(index.crc32[row])):
            raise _Damaged(f"{where(index, row)}: checksum {found:08x}, wanted {wanted:08x}; {_REMEDY}")
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


def where(index: Index, row: int) -> str:
    """What a message calls an image: its shard, key and row."""
    shard = int(index.shard[row])
    name = index.shards[shard] if 0 <= shard < len(index.shards) else TABLE
    return f"{index.root / name}: image {index.key(row)} (row {row})"


def _told(size: tuple[int, int] | None) -> str:
    return "not a JPEG" if size is None else f"has (height, width) {size}"


_REMEDY = "see what else is damaged with embae inspect --verify, then copy the shard again or shard the dataset again"
