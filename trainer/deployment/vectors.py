"""Embeddings of a dataset's images in one file, with the labels of each image.

An Arrow IPC file with one record batch for each split and dataset, uncompressed, so that it can be memory-mapped:

    key        of the image in its dataset
    dataset    its name
    camid      int32
    pid        int64, null if it is unknown, and for distractors and junk
    role       person, distractor or junk
    row        int64, of the image in the dataset's index
    embedding  fixed-size list of float32, raw

Any reader of Arrow reads it (``pyarrow.feather.read_table(path, memory_map=True)``, pandas, polars, DuckDB). The
schema's metadata has, under ``embae``, the origin of the embeddings as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_atomically
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import ROLES
from embae.trainer.model.known_cameras import Camera

FORMAT = 1
_AGAIN = "write it again with embae extract"


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from: a model and images.

    Attributes:
        model: A digest of the weights, their input and the test-time augmentation: embeddings of equal keys compare.
        name, fingerprint: Of the dataset or the merged set.
        splits: Its splits, in this order.
        root: Where it was.
        cameras: The cameras that have a name: dataset → name → camid.
    """

    model: str
    name: str
    fingerprint: str
    splits: list[str]
    root: str = field(compare=False)
    cameras: dict[str, dict[str, int]] = field(default_factory=dict)


class Vectors:
    """A file of embeddings, memory-mapped.

    Attributes:
        origin: Where they come from.
        width: Dimension of an embedding.
        datasets: Names of the datasets; `dataset` holds positions in this list.
        dataset: `(N,)`.
        camid: `(N,)`.
        pid: `(N,)`; where `labelled` is false there is none.
        labelled: `(N,)`.
        distractor, junk: `(N,)`, whether it has this role.
        row: `(N,)`, of each image in its dataset's index.
        parts: All embeddings in order, in pieces `(n, D)`: views of the file.
    """

    def __init__(self, origin: Origin, table: pa.Table):
        self.origin, self._table = origin, table
        self.width = table.schema.field("embedding").type.list_size
        pieces = table.column("dataset").chunks
        self.datasets: list[str] = pieces[0].dictionary.to_pylist()
        self.dataset = np.concatenate([piece.indices.to_numpy() for piece in pieces])
        if any(piece.dictionary != pieces[0].dictionary for piece in pieces) or not self.datasets or (
                not 0 <= self.dataset.min(initial=0) <= self.dataset.max(initial=0) < len(self.datasets)):
            raise ValueError("the column dataset is damaged")
        self.camid, self.row = (table.column(name).to_numpy() for name in ("camid", "row"))
        self.labelled = table.column("pid").is_valid().to_numpy()
        self.pid = table.column("pid").fill_null(-1).to_numpy()
        self.distractor, self.junk = (pc.equal(table.column("role").cast(pa.string()), role).to_numpy()
                                      for role in ("distractor", "junk"))
        self.parts = [np.asarray(chunk.flatten()).reshape(-1, self.width)
                       for chunk in table.column("embedding").chunks]
        self._starts = np.cumsum([0, *map(len, self.parts)])

    @classmethod
    def open(cls, path: Path) -> Vectors:
        """Opens a file.

        Raises:
            DataError: It is missing, damaged, or not a file of embeddings.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate()
            origin = _read_origin(table.schema.metadata)
            if table.schema != _schema(table.schema.field("embedding").type.list_size):
                raise ValueError("its columns are not those of embae extract")
            if any(table.column(name).null_count for name in ("key", "dataset", "camid", "role", "row", "embedding")):
                raise ValueError("empty values")
            return cls(origin, table)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; {_AGAIN}") from None
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a whole file of embeddings ({error}); {_AGAIN}") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of some images: `(n, D)`, a copy."""
        embeddings = np.empty((len(rows), self.width), np.float32)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in set(part.tolist()):
            embeddings[part == number] = self.parts[number][rows[part == number] - self._starts[number]]
        return embeddings

    @cached_property
    def camera_names(self) -> dict[Camera, str]:
        """(dataset, camid) → name of the camera, of those that have one."""
        return {(dataset, camid): name for dataset, named in self.origin.cameras.items()
                for name, camid in named.items()}

    def camera_name(self, camera: Camera) -> str:
        """The name of a camera, or its number if it has none."""
        return self.camera_names.get(camera, str(camera[1]))

    def cameras(self) -> list[Camera]:
        """The (dataset, camid) of every camera, sorted."""
        return sorted({(name, int(camid)) for number, name in enumerate(self.datasets)
                       for camid in np.unique(self.camid[self.dataset == number])})

    def is_row(self, dataset: str, row: int) -> np.ndarray:
        """Which images are a row of a dataset's index: `(N,)`."""
        number = self.datasets.index(dataset) if dataset in self.datasets else -1
        return (self.dataset == number) & (self.row == row)

    def key(self, image: int) -> str:
        """The key of an image."""
        return self._table.column("key")[int(image)].as_py()


def write_vectors(path: Path, origin: Origin, pieces: Sequence[tuple[Index, np.ndarray, np.ndarray]]) -> None:
    """Writes a file of embeddings, whole or not at all.

    Args:
        path: The file.
        origin: Where they come from.
        pieces: Datasets, rows of their indexes `(n,)`, and the embeddings of these `(n, D)`.

    Raises:
        FloatingPointError: An embedding is not finite.
    """
    width, names = pieces[0][2].shape[1], list(dict.fromkeys(index.name for index, _, _ in pieces))
    schema = _schema(width).with_metadata({"embae": json.dumps({"format": FORMAT, **asdict(origin)})})

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            for index, rows, embeddings in pieces:
                writer.write_batch(_batch(schema, names, index, rows, embeddings))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _batch(schema: pa.Schema, names: list[str], index: Index, rows: np.ndarray,
           embeddings: np.ndarray) -> pa.RecordBatch:
    for start in range(0, len(rows), 4096):
        if not np.isfinite(embeddings[start:start + 4096]).all():
            raise FloatingPointError(f"{index.name}: embeddings are not finite; the model diverged in training")
    is_person = index.labelled[rows] & (index.role[rows] == ROLES.index("person"))
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))  # no copy of what is memory-mapped
    columns = {
        "key": index.keys.take(pa.array(rows)),
        "dataset": pa.DictionaryArray.from_arrays(np.full(len(rows), names.index(index.name), np.int32), names),
        "camid": pa.array(index.camid[rows]),
        "pid": pa.array(index.pid[rows], mask=~is_person),
        "role": pa.DictionaryArray.from_arrays(pa.array(index.role[rows]), pa.array(ROLES)),
        "row": pa.array(rows.astype(np.int64)),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
    }
    return pa.record_batch([columns[field.name] for field in schema], schema=schema)


def _schema(width: int) -> pa.Schema:
    return pa.schema([("key", pa.string()), ("dataset", pa.dictionary(pa.int32(), pa.string())), ("camid", pa.int32()),
                      ("pid", pa.int64()), ("role", pa.dictionary(pa.int8(), pa.string())), ("row", pa.int64()),
                      ("embedding", pa.list_(pa.float32(), width))])


def _read_origin(metadata: dict[bytes, bytes] | None) -> Origin:
    content: Any = json.loads((metadata or {}).get(b"embae", b"null"))
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    origin = Origin(**content)
    texts = [origin.model, origin.name, origin.root, origin.fingerprint]
    if not isinstance(origin.splits, list) or not all(isinstance(text, str) for text in [*texts, *origin.splits]):
        raise ValueError("its origin is damaged")
    if not isinstance(origin.cameras, dict) or not all(isinstance(named, dict) and all(
            type(camid) is int for camid in named.values()) for named in origin.cameras.values()):
        raise ValueError("its names of cameras are damaged")
    return origin
