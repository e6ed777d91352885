"""The index of a dataset: one row an image, memory-mapped, so that all ranks share one copy and opening costs nothing.

On disk (``<root>/<dataset>/``): ``index.arrow``, an Arrow IPC file with one record batch, and ``dataset.yaml``, the
dataset's card, which is written last and so marks a complete dataset. `index_writer.write_index` writes both.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS
from embae.datasets.index.card import AGAIN, CARD, FORMAT, read_card, some
from embae.datasets.index.records import ROLES, SPLITS, Split
from embae.datasets.remote.url import Url

TABLE = "index.arrow"

# A shard is a plain file beside the index. Anything else (a path, a url, "pipe:…") is refused before it is opened.
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar")

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


class Index:
    """One dataset's index. Column arrays are read-only views of the file, one element a row.

    Rows are sorted by split (train, query, gallery), then pid (unlabelled last), camid and key: the images of one
    identity lie side by side, and so do the rows of one shard, by rising offset.

    Attributes:
        name: The dataset's name.
        root: The dataset's folder, or its url.
        copies: What the copies of a far dataset's files are called in its cache: a folder there; empty if it is near.
        card: ``dataset.yaml`` as read.
        fingerprint: SHA-256 over keys, splits, pids, camids, roles and image checksums, however they are sharded.
        image: (height, width) in pixels if all images have that one size, else None.
        shards: Shard file names; `shard` holds positions in this list.
    """

    def __init__(self, root: Path | Url, card: dict[str, Any], batch: pa.RecordBatch, copies: str = "") -> None:
        """For `Index.open`, which checks what it hands over."""
        self.root = root
        self.copies = copies
        self.card = card
        self.name: str = card["name"]
        self.fingerprint: str = card["fingerprint"]
        self.image: tuple[int, int] | None = tuple(card["image"]) if card["image"] else None
        self._batch = batch
        self.shards: list[str] = batch.column("shard").dictionary.to_pylist()
        self._lengths = np.zeros(len(self.shards), np.int64)  # of the shards in bytes
        # The rows of a shard lie side by side by rising offset, so its last row says how long the file must be.
        last = np.searchsorted(self.shard, np.arange(len(self.shards), dtype=np.int32), side="right") - 1
        self._ends = self.offset[last] + self.size[last]

    @classmethod
    def open(cls, folder: Path | Url) -> Index:
        """Opens a dataset, in a time that does not grow with its rows.

        What costs a pass over the data (checksums, the fingerprint) is left to ``embae inspect --verify``. Of a far
        dataset the card is read each time, as it says whether the dataset is another one now, and the table is fetched
        once; its shards are not looked at before they are fetched.

        Args:
            folder: ``<root>/<dataset>``, a folder or a url.

        Raises:
            DataError: The folder or a file of it is missing, of another format or cut short, or the files do not
                belong together.
        """
        folder = folder if isinstance(folder, Url) else Path(folder)
        card = read_card(folder)
        if isinstance(folder, Url):
            return cls._open_far(folder, card)
        index = cls(folder.absolute(), card, _read_batch(folder / TABLE, card))
        index._check_names()
        index._check_shards()
        return index

    @classmethod
    def _open_far(cls, url: Url, card: dict[str, Any]) -> Index:
        table = url / TABLE
        # A dataset that was made anew, be it of the same images in other shards, has copies of its own.
        known = hashlib.sha256(f"{url}\n{card['fingerprint']}\n{table.version()}".encode()).hexdigest()
        copies = f"{card['name']}-{known[:24]}"
        name = f"{copies}/{TABLE}"
        held = url.cache.hold(name, 0, lambda to: table.copy(to, url.cache.most))
        try:
            try:
                batch = _read_batch(Path(f"/proc/self/fd/{held}"), card, table)
            except DataError:
                url.cache.forget(name, held)  # the next try fetches it again
                raise
            index = cls(url, card, batch, copies)
        except BaseException:
            os.close(held)
            raise
        weakref.finalize(index, os.close, held)  # as long as it is mapped, it counts as used
        index._check_names()
        index._lengths[:] = 2**62
        return index

    def open_shard(self, shard: int) -> int:
        """A file descriptor of a shard; of a far dataset, of its copy, which is fetched if need be and stays meanwhile.

        Raises:
            OSError: It cannot be opened.
            DataError: It cannot be fetched.
        """
        name = self.shards[shard]
        if not isinstance(self.root, Url):
            # Opening a pipe would wait for a writer.
            return os.open(self.root / name, os.O_RDONLY | os.O_NONBLOCK)
        far, cache = self.root / name, self.root.cache
        return cache.hold(f"{self.copies}/{name}", int(self._ends[shard]), lambda to: far.copy(to, cache.most))

    def length(self, shard: int) -> int:
        """Bytes up to the end of a shard's last image."""
        return int(self._ends[shard])

    def forget_shard(self, shard: int, held: int) -> bool:
        """Removes a damaged copy that was held, to be fetched again; False where the shard is no copy."""
        if isinstance(self.root, Url):
            self.root.cache.forget(f"{self.copies}/{self.shards[shard]}", held)
        return isinstance(self.root, Url)

    def __len__(self) -> int:
        return self._batch.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.root,)  # a worker process maps the file itself

    def __repr__(self) -> str:
        return f"Index({self.name!r}, {len(self):,} images, {len(self.shards)} shards, {str(self.root)!r})"

    def _column(self, name: str) -> Any:
        column = self._batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.indices
        dtype = np.dtype(column.type.to_pandas_dtype())
        start = column.offset * dtype.itemsize
        return np.frombuffer(column.buffers()[1], dtype=dtype, count=len(column), offset=start)

    @cached_property
    def pid(self) -> npt.NDArray[np.int64]:
        """Identities; where `labelled` is false there is none, and the value means nothing."""
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

    @cached_property
    def camera_names(self) -> dict[int, str]:
        """camid → what the images' owner calls the camera, where the card says so; camids are numbered anew by those
        who shard a folder that has more cameras now, names stay."""
        source = self.card.get("source")
        named = source.get("cameras") if isinstance(source, dict) else None
        if not isinstance(named, dict):
            return {}
        return {camid: str(name) for name, camid in named.items() if type(camid) is int}

    @property
    def keys(self) -> pa.StringArray:
        """All keys, as an Arrow array."""
        return self._batch.column("key")

    def key(self, row: int) -> str:
        """The key of one row."""
        _, ends, text = self._batch.column("key").buffers()
        first = self._batch.column("key").offset + int(row)
        start, stop = np.frombuffer(ends, np.int32, 2, 4 * first).tolist()
        if not 0 <= start <= stop <= (text.size if text else 0):  # Arrow itself would read what is not there
            raise DataError(f"{self.root / TABLE}: the key of row {row} is damaged; copy it again, or {AGAIN}")
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

    def validate(self) -> None:
        """Looks at every value of the table: text that is text, codes within their dictionaries, places in the shards.

        Raises:
            DataError: A value that cannot be, with its row.
        """
        path = self.root / TABLE
        try:
            self._batch.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{path} is damaged ({error}); copy it again, or {AGAIN}") from error
        ends = self._lengths[self.shard] - self.size  # offset + size might be too large a number
        pixels = self.height.astype(np.int64) * self.width
        for wrong, said in (
            (np.append(False, self.split[1:] < self.split[:-1]), "is of a split before that of the row above it"),
            (self.camid < 0, "has a camid below 0"),
            ((self.size < 1) | (self.offset < 0) | (self.offset > ends), "lies outside its shard"),
            ((self.height < 1) | (self.width < 1) | (pixels > MAX_PIXELS), f"has not 1 to {MAX_PIXELS:,} pixels"),
        ):
            if wrong.any():
                row = int(np.argmax(wrong))
                raise DataError(f"{path}: image {self.key(row)} (row {row}) {said}; copy it again, or {AGAIN}")

    def _check_names(self) -> None:
        for name in self.shards:
            if not SHARD_NAME.fullmatch(name):
                raise DataError(f"{self.root / TABLE}: {name!r} is not the name of a tar beside it; {AGAIN}")

    def _check_shards(self) -> None:
        missing, short = [], []
        for number, (name, end) in enumerate(zip(self.shards, self._ends.tolist(), strict=True)):
            try:
                status = os.stat(self.root / name)  # type: ignore[arg-type]
            except FileNotFoundError:
                missing.append(name)
                continue
            except OSError as error:
                raise DataError(f"{self.root / name}: cannot be read ({error.strerror}); {AGAIN}") from error
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{self.root / name} is not a plain file; {AGAIN}")
            self._lengths[number] = status.st_size
            if status.st_size < end:
                short.append(f"{name} has {status.st_size:,} bytes, its last image ends at {end:,}")
        if missing:
            raise DataError(
                f"{self.root}: {len(missing)} of {len(self.shards)} shards are missing ({some(missing)}); "
                "copy them here from where the dataset was made, or shard it again"
            )
        if short:
            raise DataError(f"{self.root}: shards are cut short ({some(short)}); copy them again, or shard it again")


def _read_batch(at: Path, card: dict[str, Any], path: Path | Url | None = None) -> pa.RecordBatch:
    """Maps the table and checks that it is one of ours and belongs to the card; `path` is what messages call it."""
    path = path or at
    if not at.is_file():
        raise DataError(f"{path} is missing, though {CARD} is there; copy it here, or {AGAIN}")
    try:
        file = pa.memory_map(str(at))
        reader = pa.ipc.open_file(file)
        batches = reader.num_record_batches
        batch = reader.get_batch(0) if batches == 1 else None
        if batch is not None:
            batch.validate()  # buffers that are as long as the rows need; not their values, see `Index.validate`
        found = [f"{field.name}: {field.type}" for field in reader.schema]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the latter where a column's name is no text
        raise DataError(f"{path} is not a whole Arrow file ({error}); copy it again, or {AGAIN}") from error
    wanted = [f"{field.name}: {field.type}" for field in SCHEMA]
    if wanted != found:
        lacks = [c for c in wanted if c not in found] or ["another order of columns"]
        raise DataError(f"{path} has other columns than format {FORMAT}: found {some(found, 20)}; "
                        f"wanted {some(lacks)}; {AGAIN}")
    if batch is None:
        raise DataError(f"{path} has {batches} record batches, wanted one; {AGAIN}")
    _check_mapped(batch, file, path)
    for field in SCHEMA:
        if not field.nullable and batch.column(field.name).null_count:
            raise DataError(f"{path}: column {field.name} has empty values; {AGAIN}")
    dictionaries = {name: _texts(batch.column(name).dictionary, path) for name in ("split", "role", "shard")}
    for name, names in (("split", SPLITS), ("role", ROLES)):
        if dictionaries[name] != list(names):
            raise DataError(f"{path}: column {name} must code {', '.join(names)} in this order; {AGAIN}")
    images = sum(card["counts"][split]["images"] for split in SPLITS)
    if batch.num_rows != images or images == 0:
        raise DataError(f"{path} has {batch.num_rows:,} rows, {CARD} counts {images:,} images: "
                        f"they are not of one dataset; copy both again, or {AGAIN}")
    fingerprint = (reader.schema.metadata or {}).get(b"fingerprint", b"").decode("utf-8", "replace")
    if fingerprint != card["fingerprint"]:
        raise DataError(f"{path} has the fingerprint {fingerprint[:12] or 'none'}, {CARD} says "
                        f"{card['fingerprint'][:12]}: they are not of one dataset; copy both again, or {AGAIN}")
    return batch


def _check_mapped(batch: pa.RecordBatch, file: pa.MemoryMappedFile, path: Path | Url) -> None:
    """Columns must be views of the file: what is compressed is a copy in every process, of any size."""
    start, size = file.read_buffer().address if file.seek(0) == 0 else 0, file.size()
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size and not 0 <= buffer.address - start <= size - buffer.size:
                raise DataError(f"{path}: its columns are compressed; {AGAIN}")


def _texts(dictionary: pa.Array, path: Path | Url) -> list[str]:
    try:
        dictionary.validate(full=True)
        if dictionary.null_count:
            raise pa.ArrowInvalid("a name is empty")
    except pa.ArrowException as error:
        raise DataError(f"{path}: its names of splits, roles or shards are damaged ({error}); copy it again, or "
                        f"{AGAIN}") from error
    return dictionary.to_pylist()
