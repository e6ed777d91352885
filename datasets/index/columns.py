"""The columns of an index before it is written, and what must be true of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embae.datasets.errors import DataError
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.shard_files import SHARD_NAME
from embae.datasets.index.table import IndexTable
from embae.datasets.remote.url import Url


@dataclass(frozen=True)
class Columns:
    """The columns of an index before it is written, named and ordered as in `IndexTable`, one element per row.

    ``split`` and ``role`` are positions in `SPLITS` and `ROLES`, ``shard`` positions in ``shards``. ``pid`` has a
    meaning only where ``labelled``.
    """

    keys: pa.StringArray
    split: npt.NDArray[np.int8]
    pid: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.bool_]
    camid: npt.NDArray[np.int32]
    role: npt.NDArray[np.int8]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    crc32: npt.NDArray[np.uint32]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    shards: list[str]

    def __len__(self) -> int:
        return len(self.keys)


def check_columns(columns: Columns | IndexTable, path: Path | Url) -> None:
    """Checks what `Index.open` relies on without checking it.

    Raises:
        DataError: No rows, a code out of range, a repeated key, rows out of order, shards not in row order, or a shard
            name that is not that of a plain tar.
    """
    if len(columns) == 0:
        raise DataError(f"{path}: no images; a dataset has at least one")
    for name in columns.shards:
        if not SHARD_NAME.fullmatch(name):
            raise DataError(f"{path}: {name!r} is not the name of a tar beside the index")
    for name, names in (("split", SPLITS), ("role", ROLES), ("shard", columns.shards)):
        codes = getattr(columns, name)
        if codes.min() < 0 or codes.max() >= len(names):
            raise DataError(f"{path}: column {name} has codes outside 0 … {len(names) - 1}; shard the dataset again")
    if (repeated := len(columns) - pc.count_distinct(columns.keys).as_py()) > 0:
        raise DataError(f"{path}: {repeated:,} keys appear more than once; keys are unique within a dataset")
    # Each row against the next one, from the least significant column to the most significant.
    rising = np.asarray(pc.less(columns.keys[:-1], columns.keys[1:]))
    pid = np.where(columns.labelled, columns.pid, 0)
    for column in (columns.camid, pid, ~columns.labelled, columns.split):
        rising = (column[:-1] < column[1:]) | ((column[:-1] == column[1:]) & rising)
    if not rising.all():
        row = int(np.argmin(rising)) + 1
        raise DataError(
            f"{path}: row {row} (key {columns.keys[row]}) is out of order; rows are sorted by split, pid (unlabelled "
            "last), camid and key; shard the dataset again"
        )
    step = np.diff(columns.shard)
    if columns.shard[0] != 0 or columns.shard[-1] != len(columns.shards) - 1 or not np.isin(step, (0, 1)).all():
        raise DataError(f"{path}: shards are not in row order, each with one run of rows; shard the dataset again")
    ends = columns.offset + columns.size
    if columns.offset.min() < 0 or columns.size.min() <= 0 or (columns.offset[1:] < ends[:-1])[step == 0].any():
        raise DataError(f"{path}: offsets do not rise within a shard; shard the dataset again")
