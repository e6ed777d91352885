"""The index of a dataset: its table, memory-mapped so that all ranks share one copy, with its card and its shards.

On disk (``<root>/<dataset>/``): the table ``index.arrow``, and ``dataset.yaml``, the dataset's card, which is written
last and so marks a complete dataset. `writer.write_index` writes both.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS
from embae.datasets.index.card import REMEDY, read_card
from embae.datasets.index.shard_files import check_names, open_shard, read_lengths
from embae.datasets.index.table import TABLE, IndexTable
from embae.datasets.index.table_file import read_table
from embae.datasets.remote.url import Url

_UNKNOWN_LENGTH = 2**62  # of a shard that was not opened


class Index(IndexTable):
    """One dataset's index; rows and columns are those of `IndexTable`.

    Attributes:
        name: The dataset's name.
        root: The dataset's folder, or its url.
        copies: Folder in the cache for copies of a remote dataset's files; empty for a local dataset.
        card: ``dataset.yaml`` as read.
        fingerprint: SHA-256 over keys, splits, pids, camids, roles and image checksums, however they are sharded.
        image: (height, width) in pixels if all images have the same size, else None.
    """

    def __init__(self, root: Path | Url, card: dict[str, Any], batch: pa.RecordBatch, copies: str = "") -> None:
        """For `Index.open`, which checks the arguments."""
        super().__init__(batch, root / TABLE)
        self.root = root
        self.copies = copies
        self.card = card
        self.name: str = card["name"]
        self.fingerprint: str = card["fingerprint"]
        self.image: tuple[int, int] | None = tuple(card["image"]) if card["image"] else None
        self._lengths = np.full(len(self.shards), _UNKNOWN_LENGTH)  # of the shards in bytes
        # The rows of a shard are adjacent, by rising offset: the end of its last row is the least length of the file.
        last = np.searchsorted(self.shard, np.arange(len(self.shards), dtype=np.int32), side="right") - 1
        self._ends = self.offset[last] + self.size[last]

    @classmethod
    def open(cls, folder: Path | Url) -> Index:
        """Opens a dataset, in a time that does not grow with its rows.

        Checks that cost a pass over the data (checksums, the fingerprint) are left to ``embae inspect --verify``. For a
        remote dataset the card is read each time, as it tells whether the dataset has changed, and the table is
        downloaded once; shards are not checked before they are downloaded.

        Args:
            folder: ``<root>/<dataset>``, a folder or a url.

        Raises:
            DataError: The folder or one of its files is missing, has another format or is cut short, or the files do
                not belong together.
        """
        folder = folder if isinstance(folder, Url) else Path(folder)
        card = read_card(folder)
        if isinstance(folder, Url):
            return cls._open_remote(folder, card)
        index = cls(folder.absolute(), card, read_table(folder / TABLE, card, folder / TABLE))
        check_names(index.shards, folder.absolute() / TABLE)
        index._lengths = read_lengths(folder.absolute(), index.shards, index._ends)
        return index

    @classmethod
    def _open_remote(cls, url: Url, card: dict[str, Any]) -> Index:
        table = url / TABLE
        # A dataset that was sharded again has its own copies, even where its images are the same.
        version = hashlib.sha256(f"{url}\n{card['fingerprint']}\n{table.version()}".encode()).hexdigest()
        copies = f"{card['name']}-{version[:24]}"
        name = f"{copies}/{TABLE}"
        descriptor = open_shard(table, name, 0)
        try:
            try:
                batch = read_table(Path(f"/proc/self/fd/{descriptor}"), card, table)
            except DataError:
                url.cache.discard(name, descriptor)  # the next attempt downloads it again
                raise
            index = cls(url, card, batch, copies)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(index, os.close, descriptor)  # as long as it is mapped, it is in use
        check_names(index.shards, table)
        return index

    def open_shard(self, shard: int) -> int:
        """Opens a shard; of a remote dataset, its copy, which is downloaded first if there is none.

        Returns:
            A file descriptor; a copy is not removed while it is open.

        Raises:
            OSError: The shard cannot be opened.
            DataError: The shard cannot be downloaded.
        """
        name = self.shards[shard]
        return open_shard(self.root / name, f"{self.copies}/{name}", self.shard_bytes(shard))

    def shard_bytes(self, shard: int) -> int:
        """Bytes up to the end of a shard's last image."""
        return int(self._ends[shard])

    def discard_copy(self, shard: int, descriptor: int) -> bool:
        """Removes a damaged copy that is open, so that it is downloaded again; False where the shard is not a copy."""
        if isinstance(self.root, Url):
            self.root.cache.discard(f"{self.copies}/{self.shards[shard]}", descriptor)
        return isinstance(self.root, Url)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.root,)  # a worker process maps the file itself

    def __repr__(self) -> str:
        return f"Index({self.name!r}, {len(self):,} images, {len(self.shards)} shards, {str(self.root)!r})"

    @cached_property
    def camera_names(self) -> dict[int, str]:
        """camid → the owner's name of the camera, where the card has it.

        Camids change when a folder with more cameras is sharded again; names do not.
        """
        source = self.card.get("source")
        named = source.get("cameras") if isinstance(source, dict) else None
        if not isinstance(named, dict):
            return {}
        return {camid: str(name) for name, camid in named.items() if type(camid) is int}

    def validate(self) -> None:
        """Checks every value of the table: valid text, codes within their dictionaries, images within their shards.

        Raises:
            DataError: A value is invalid; the message names its row.
        """
        self.validate_values()
        last_offset = self._lengths[self.shard] - self.size  # offset + size could overflow
        pixels = self.height.astype(np.int64) * self.width
        for wrong, problem in (
            (np.append(False, self.split[1:] < self.split[:-1]), "belongs to an earlier split than the row before it"),
            (self.camid < 0, "has a camid below 0"),
            ((self.size < 1) | (self.offset < 0) | (self.offset > last_offset), "is outside its shard"),
            ((self.height < 1) | (self.width < 1) | (pixels > MAX_PIXELS), f"has not 1 to {MAX_PIXELS:,} pixels"),
        ):
            if wrong.any():
                row = int(np.argmax(wrong))
                raise DataError(f"{self.root / TABLE}: image {self.key(row)} (row {row}) {problem}; copy it again, or "
                                f"{REMEDY}")
