"""The table of an index: one row per image, one column array per property."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embae.datasets.errors import DataError
from embae.datasets.index.card import REMEDY
from embae.datasets.index.records import SPLITS, Split
from embae.datasets.remote.url import Url

TABLE = "index.arrow"

SCHEMA = pa.schema(
    [
        pa.field("split", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("pid", pa.int64()),
        pa.field("camid", pa.int32(), nullable=False),
        pa.field("role", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)


class IndexTable:
    """The rows of an index. Column arrays are read-only views of the mapped file, one element per row.

    Rows are sorted by split (train, query, gallery), then pid (unlabelled last), camid and key. So the images of one
    identity are adjacent, and so are the rows of one shard, by rising offset.

    Args:
        batch: What `table_file.read_table` returned.
        path: The file, for messages.

    Attributes:
        shards: Shard file names; `shard` holds positions in this list.
    """

    def __init__(self, batch: pa.RecordBatch, path: Path | Url) -> None:
        self.shards: list[str] = batch.column("shard").dictionary.to_pylist()
        self._batch, self._path = batch, path

    def __len__(self) -> int:
        return self._batch.num_rows

    def _column(self, name: str) -> Any:
        column = self._batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.indices
        dtype = np.dtype(column.type.to_pandas_dtype())
        start = column.offset * dtype.itemsize
        return np.frombuffer(column.buffers()[1], dtype=dtype, count=len(column), offset=start)

    @cached_property
    def pid(self) -> npt.NDArray[np.int64]:
        """Identities; the value is meaningless where `labelled` is false."""
        return self._column("pid")

    @cached_property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """True where the identity is known."""
        column = self._batch.column("pid")
        if column.null_count == 0:
            return np.ones(len(self), dtype=np.bool_)
        bits = np.frombuffer(column.buffers()[0], dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little", count=column.offset + len(self))[column.offset :].view(np.bool_)

    @cached_property
    def camid(self) -> npt.NDArray[np.int32]:
        """Cameras."""
        return self._column("camid")

    @cached_property
    def split(self) -> npt.NDArray[np.int8]:
        """Positions in `records.SPLITS`."""
        return self._column("split")

    @cached_property
    def role(self) -> npt.NDArray[np.int8]:
        """Positions in `records.ROLES`."""
        return self._column("role")

    @cached_property
    def shard(self) -> npt.NDArray[np.int32]:
        """Positions in `shards`."""
        return self._column("shard")

    @cached_property
    def offset(self) -> npt.NDArray[np.int64]:
        """Where the image's bytes start in its shard."""
        return self._column("offset")

    @cached_property
    def size(self) -> npt.NDArray[np.int32]:
        """Encoded bytes of the image."""
        return self._column("size")

    @cached_property
    def crc32(self) -> npt.NDArray[np.uint32]:
        """``zlib.crc32`` of the encoded bytes."""
        return self._column("crc32")

    @cached_property
    def height(self) -> npt.NDArray[np.int32]:
        """Pixels."""
        return self._column("height")

    @cached_property
    def width(self) -> npt.NDArray[np.int32]:
        """Pixels."""
        return self._column("width")

    @property
    def keys(self) -> pa.StringArray:
        """All keys, as an Arrow array."""
        return self._batch.column("key")

    def key(self, row: int) -> str:
        """The key of one row.

        Raises:
            DataError: It is damaged.
        """
        _, ends, text = self._batch.column("key").buffers()
        first = self._batch.column("key").offset + int(row)
        start, stop = np.frombuffer(ends, np.int32, 2, 4 * first).tolist()
        if not 0 <= start <= stop <= (text.size if text else 0):  # Arrow itself would read outside of the buffer
            raise DataError(f"{self._path}: the key of row {row} is damaged; copy it again, or {REMEDY}")
        return text[start:stop].to_pybytes().decode("utf-8", "backslashreplace") if stop > start else ""

    def rows(self, split: Split) -> slice:
        """The rows of a split: ``index.pid[index.rows("train")]`` is a view."""
        code = SPLITS.index(split)
        start, stop = np.searchsorted(self.split, np.array([code, code + 1], dtype=np.int8))
        return slice(int(start), int(stop))

    def count(self, split: Split) -> int:
        """How many images a split has."""
        rows = self.rows(split)
        return rows.stop - rows.start

    def validate_values(self) -> None:
        """Checks every value of the Arrow columns: text is valid, codes are within their dictionaries.

        Raises:
            DataError: A value is invalid.
        """
        try:
            self._batch.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{self._path} is damaged ({error}); copy it again, or {REMEDY}") from error
