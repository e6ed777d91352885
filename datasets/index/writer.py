"""Writes the index of a dataset: `Columns` → ``index.arrow`` and, last, ``dataset.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embae.datasets.files.atomic import write_atomically, write_text
from embae.datasets.files.yaml_files import format_yaml
from embae.datasets.index.card import CARD, FORMAT
from embae.datasets.index.columns import Columns, check_columns
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.summary import counts, fingerprint
from embae.datasets.index.table import SCHEMA, TABLE


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
        folder: The dataset's folder, which already contains its shards.
        name: The dataset's name.
        columns: The rows, sorted as `IndexTable` describes.
        source: Where the images came from (reader, root, options); plain values only.
        about: Further entries of the card (licence, notes, …); plain values only.

    Raises:
        DataError: No rows, a repeated key, rows out of order, or an invalid shard name.
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


def _batch(columns: Columns) -> pa.RecordBatch:
    # -1 under the nulls, so that the file does not depend on the value that the caller left there.
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
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
