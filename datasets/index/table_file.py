"""Maps ``index.arrow``, an Arrow IPC file with one record batch, and checks that it belongs to its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from embae.datasets.errors import DataError
from embae.datasets.index.card import CARD, FORMAT, REMEDY, list_some
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.table import SCHEMA
from embae.datasets.remote.url import Url


def read_table(file_path: Path, card: dict[str, Any], shown_path: Path | Url) -> pa.RecordBatch:
    """Maps the table of an index. What costs a pass over its rows is not checked.

    Args:
        file_path: The file.
        card: The card of the dataset.
        shown_path: What messages call the file.

    Raises:
        DataError: The file is missing or damaged, has another format, or does not belong to the card.
    """
    if not file_path.is_file():
        raise DataError(f"{shown_path} is missing, though {CARD} is there; copy it here, or {REMEDY}")
    try:
        file = pa.memory_map(str(file_path))
        reader = pa.ipc.open_file(file)
        batches = reader.num_record_batches
        batch = reader.get_batch(0) if batches == 1 else None
        if batch is not None:
            batch.validate()  # that buffers are long enough; for values see `IndexTable.validate_values`
        columns = [f"{field.name}: {field.type}" for field in reader.schema]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the latter where a column's name is not text
        raise DataError(f"{shown_path} is not a whole Arrow file ({error}); copy it again, or {REMEDY}") from error
    expected = [f"{field.name}: {field.type}" for field in SCHEMA]
    if columns != expected:
        missing = [column for column in expected if column not in columns] or ["another order of columns"]
        raise DataError(f"{shown_path} has other columns than format {FORMAT}: found {list_some(columns, 20)}; "
                        f"expected {list_some(missing)}; {REMEDY}")
    if batch is None:
        raise DataError(f"{shown_path} has {batches} record batches, expected one; {REMEDY}")
    _check_mapped(batch, file, shown_path)
    _check_columns(batch, shown_path)
    fingerprint = (reader.schema.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace")
    _check_belongs(batch, fingerprint, card, shown_path)
    return batch


def _check_mapped(batch: pa.RecordBatch, file: pa.MemoryMappedFile, path: Path | Url) -> None:
    """Columns must be views of the file: a compressed column is copied in every process, and may have any size."""
    start, size = file.read_buffer().address if file.seek(0) == 0 else 0, file.size()
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size and not 0 <= buffer.address - start <= size - buffer.size:
                raise DataError(f"{path}: its columns are compressed; {REMEDY}")


def _check_columns(batch: pa.RecordBatch, path: Path | Url) -> None:
    for field in SCHEMA:
        if not field.nullable and batch.column(field.name).null_count:
            raise DataError(f"{path}: column {field.name} has empty values; {REMEDY}")
    dictionaries = {name: _names(batch.column(name).dictionary, path) for name in ("split", "role", "shard")}
    for name, names in (("split", SPLITS), ("role", ROLES)):
        if dictionaries[name] != list(names):
            raise DataError(f"{path}: column {name} must code {', '.join(names)} in this order; {REMEDY}")


def _check_belongs(batch: pa.RecordBatch, fingerprint: str, card: dict[str, Any], path: Path | Url) -> None:
    images = sum(card["counts"][split]["images"] for split in SPLITS)
    if batch.num_rows != images or images == 0:
        raise DataError(f"{path} has {batch.num_rows:,} rows, {CARD} counts {images:,} images: "
                        f"they do not belong to the same dataset; copy both again, or {REMEDY}")
    if fingerprint != card["fingerprint"]:
        raise DataError(f"{path} has the fingerprint {fingerprint[:12] or 'none'}, {CARD} says "
                        f"{card['fingerprint'][:12]}: they do not belong to the same dataset; copy both again, or "
                        f"{REMEDY}")


def _names(dictionary: pa.Array, path: Path | Url) -> list[str]:
    try:
        dictionary.validate(full=True)
        if dictionary.null_count:
            raise pa.ArrowInvalid("a name is empty")
    except pa.ArrowException as error:
        raise DataError(f"{path}: its names of splits, roles or shards are damaged ({error}); copy it again, or "
                        f"{REMEDY}") from error
    return dictionary.to_pylist()
