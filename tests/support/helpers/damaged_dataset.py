"""A small dataset for the fuzz tests, and its files put back after each input."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.table import SCHEMA, TABLE
from helpers import tiny_run


def copied(folder: Path, name: str = "park") -> Index:
    """A drawn dataset of a few dozen images, in a folder of its own."""
    shutil.copytree(tiny_run.shards() / name, folder / name)
    return Index.open(folder / name)


@contextmanager
def kept(*files: Path) -> Iterator[None]:
    """Whatever is written to these files, they are afterwards as they were."""
    before = [file.read_bytes() for file in files]
    try:
        yield
    finally:
        for file, content in zip(files, before, strict=True):
            if file.is_symlink() or not file.is_file():
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
            file.write_bytes(content)


def with_column(folder: Path, name: str, values: np.ndarray) -> None:
    """Writes a dataset's table anew with other values (codes, for text) in one column; its metadata stay."""
    table = pa.ipc.open_file(folder / TABLE).read_all().combine_chunks()
    old = table.column(name).chunk(0)
    if pa.types.is_dictionary(old.type):
        numbers = pa.array(values.astype(old.indices.type.to_pandas_dtype()))
        new = pa.DictionaryArray.from_arrays(numbers, old.dictionary, safe=False)
    else:
        new = pa.array(values.astype(old.type.to_pandas_dtype()), mask=np.asarray(old.is_null()))
    table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), new)
    path = folder / TABLE
    with path.with_suffix(".new").open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(table.to_batches()[0])
    path.with_suffix(".new").replace(path)  # not into the file, which others have mapped
