"""Writes the index of a dataset: `Columns` → ``index.arrow`` and, last, ``dataset.yaml``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_atomically, write_text
from embae.datasets.files.yaml_files import format_yaml
from embae.datasets.index.arrow_index import SCHEMA, SHARD_NAME, TABLE, Index
from embae.datasets.index.card import CARD, FORMAT
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.remote.url import Url


@dataclass(frozen=True)
class Columns:
    """The columns of an index before it is written, named and ordered as in `Index`, one element a row.

    ``split`` and ``role`` are positions in `SPLITS` and `ROLES`, ``shard`` positions in ``shards``. ``pid`` counts only
    where ``labelled``.
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


def write_index(
    folder: Path,
    name: str,
    columns: Columns,
    *,
    source: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``index.arrow`` and then ``dataset.yaml``, each to a temporary name, flushed to disk and renamed.

    Args:
        folder: The dataset's folder; its shards are there already.
        name: The dataset's name.
        columns: The rows, sorted as `Index` says.
        source: Where the images came from (reader, root, options); plain values only.
        about: Further entries of the card (licence, notes, …); plain values only.

    Raises:
        DataError: No rows, a repeated key, rows out of order, or a shard name that is not a plain tar.
    """
    check_columns(columns, folder / TABLE)
    digest = fingerprint(columns)
    card: dict[str, Any] = {
        "name": name,
        "format": FORMAT,
        "counts": counts(columns),
        "image": _one_size(columns),
        "fingerprint": digest,
        "source": dict(source),
        "embae": _version(),
        **(about or {}),
    }
    text = format_yaml(card)
    batch = _batch(columns)
    schema = SCHEMA.with_metadata({"fingerprint": digest, "format": str(FORMAT)})

    def table(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)

    write_atomically(folder / TABLE, table)
    write_text(folder / CARD, text)


def fingerprint(columns: Columns | Index) -> str:
    """SHA-256 of what the images are (key, split, pid, camid, role, crc32), whatever shards they lie in."""
    digest = hashlib.sha256(f"embae index {FORMAT}, {len(columns)} rows\n".encode())
    for array in (
        np.asarray(pc.binary_length(columns.keys), dtype="<i4"),
        np.frombuffer(b"".join(_text(columns.keys)), dtype=np.uint8),
        columns.split.astype("<i1"),
        columns.labelled.astype("<i1"),
        np.where(columns.labelled, columns.pid, 0).astype("<i8"),
        columns.camid.astype("<i4"),
        columns.role.astype("<i1"),
        columns.crc32.astype("<u4"),
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _text(keys: pa.StringArray) -> list[memoryview]:
    """The characters of all keys, one after the other, without a copy a key."""
    _, ends, text = keys.buffers()
    ends = np.frombuffer(ends, dtype=np.int32, count=len(keys) + 1, offset=keys.offset * 4)
    return [memoryview(text)[ends[0] : ends[-1]]]


def counts(columns: Columns | Index) -> dict[str, dict[str, Any]]:
    """Per split: images, identities (of role person), unlabelled images, images per role and per camera."""
    result: dict[str, dict[str, Any]] = {}
    for code, split in enumerate(SPLITS):
        here = columns.split == code
        role, labelled = columns.role[here], columns.labelled[here]
        persons = columns.pid[here][labelled & (role == ROLES.index("person"))]
        cameras, images = np.unique(columns.camid[here], return_counts=True)
        result[split] = {
            "images": int(here.sum()),
            "identities": len(np.unique(persons)),
            "unlabelled": int((~labelled).sum()),
            "roles": {name: int((role == position).sum()) for position, name in enumerate(ROLES)},
            "cameras": dict(zip(cameras.tolist(), images.tolist(), strict=True)),
        }
    return result


def check_columns(columns: Columns | Index, path: Path | Url) -> None:
    """Checks what `Index.open` relies on without looking.

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
        raise DataError(f"{path}: {repeated:,} keys are there more than once; keys are unique within a dataset")
    # Row by row against the next: from the least significant column to the most.
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


def _batch(columns: Columns) -> pa.RecordBatch:
    # -1 under the nulls, so that the file is the same whatever the caller left there.
    pid = np.where(columns.labelled, columns.pid, -1).astype(np.int64)
    bits = np.packbits(columns.labelled, bitorder="little")
    arrays = {
        "key": columns.keys,
        "pid": pa.Array.from_buffers(pa.int64(), len(columns), [pa.py_buffer(bits), pa.py_buffer(pid)]),
        "split": _coded(columns.split, np.int8, SPLITS),
        "role": _coded(columns.role, np.int8, ROLES),
        "shard": _coded(columns.shard, np.int32, columns.shards),
    }
    for name in ("camid", "offset", "size", "crc32", "height", "width"):
        arrays[name] = pa.array(getattr(columns, name), type=SCHEMA.field(name).type)
    return pa.record_batch([arrays[field.name] for field in SCHEMA], schema=SCHEMA)


def _coded(codes: npt.NDArray[Any], dtype: type, names: Any) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(dtype)), pa.array(list(names), type=pa.string()))


def _one_size(columns: Columns) -> list[int] | None:
    height, width = int(columns.height[0]), int(columns.width[0])
    return [height, width] if (columns.height == height).all() and (columns.width == width).all() else None


def _version() -> str:
    try:
        return version("embae")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
