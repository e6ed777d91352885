"""The images that a stage reads: one or more splits of one or more datasets, with one numbering of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import ROLES, Split
from embae.datasets.sampling.keyed_random import scatter

PERSON = ROLES.index("person")


class View:
    """Splits of several datasets, concatenated; a *row* is a position in it.

    Args:
        indexes: The datasets, in the order that numbers them.
        splits: The splits of each dataset, in this order.

    Raises:
        DataError: A dataset has no images in these splits.
    """

    def __init__(self, indexes: Sequence[Index], *splits: Split):
        self.indexes = list(indexes)
        pieces = [(number, index.rows(split)) for number, index in enumerate(self.indexes) for split in splits]
        for index in self.indexes:
            if not any(index.count(split) for split in splits):
                raise DataError(f"{index.root}: no images in {' or '.join(splits)}; expected at least one.")
        self._pieces = [(number, rows) for number, rows in pieces if rows.stop > rows.start]
        self._starts = np.cumsum([0] + [rows.stop - rows.start for _, rows in self._pieces])
        self._numbers = np.array([number for number, _ in self._pieces])
        self._shifts = np.array([rows.start for _, rows in self._pieces]) - self._starts[:-1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def names(self) -> list[str]:
        """Names of the datasets, in order."""
        return [index.name for index in self.indexes]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dataset number and row in its index, of each row: two `(N,)` arrays."""
        piece = np.searchsorted(self._starts, rows, side="right") - 1
        return self._numbers[piece], rows + self._shifts[piece]

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of the index (``pid``, ``camid``, …) at these rows, `(N,)`."""
        dataset, local = self.locate(rows)
        values = np.empty(len(rows), np.int64)
        for number in set(dataset.tolist()):
            at = dataset == number
            values[at] = getattr(self.indexes[number], name)[local[at]]
        return values

    def shards(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each row, `(N,)`, numbered over all datasets."""
        starts = np.cumsum([0, *(len(index.shards) for index in self.indexes)])
        return starts[self.locate(rows)[0]] + self.column("shard", rows)

    def is_grouped_by_identity(self, dataset: int) -> bool:
        """Whether the images of each identity of a dataset are adjacent in its shards."""
        return True

    def cameras(self) -> list[tuple[str, int]]:
        """The (dataset, camid) of every camera, sorted: the order of per-camera heads."""
        cameras = {(self.indexes[number].name, int(camid)) for number, rows in self._pieces
                   for camid in np.unique(self.indexes[number].camid[rows])}
        return sorted(cameras)

    @cached_property
    def camera_names(self) -> dict[tuple[str, int], str]:
        """(dataset, camid) → the owner's name of the camera, for cameras that have one."""
        return {(index.name, camid): name for index in self.indexes for camid, name in index.camera_names.items()}

    @cached_property
    def image(self) -> tuple[int, int] | None:
        """Height and width if all images are stored at the same size, else None."""
        sizes = {index.image for index in self.indexes}
        return sizes.pop() if len(sizes) == 1 else None

    @cached_property
    def identities(self) -> list[np.ndarray]:
        """Of each identity: its first row, the row past its last one, and its number of images with role person.

        One `(identities, 3)` array per dataset, without identities that have no such image. The images of an identity
        are adjacent in an index, and unlabelled images are at the end of their split; so an identity with images in two
        of the view's splits is counted twice.
        """
        tables: list[list[np.ndarray]] = [[np.empty((0, 3), np.int64)] for _ in self.indexes]
        for start, (number, rows) in zip(self._starts, self._pieces, strict=False):
            index = self.indexes[number]
            labelled = slice(rows.start, rows.start + int(np.count_nonzero(index.labelled[rows])))
            if labelled.stop > labelled.start:
                pid = index.pid[labelled]
                first = np.concatenate([[0], np.flatnonzero(pid[1:] != pid[:-1]) + 1])
                past = np.append(first[1:], len(pid))
                persons = np.add.reduceat(index.role[labelled] == PERSON, first, dtype=np.int64)
                tables[number].append(np.stack([start + first, start + past, persons], 1)[persons > 0])
        return [np.concatenate(table) for table in tables]

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.concatenate([table[:, 0] for table in self.identities])

    def identity(self, rows: np.ndarray) -> np.ndarray:
        """Number of the identity of each row, `(N,)`, unique over all datasets; rows must belong to `identities`."""
        return np.searchsorted(self._first_rows, rows, side="right") - 1

    def fingerprints(self) -> np.ndarray:
        """A number for each image that depends only on its bytes and camera, `(N,)` uint64.

        An order by these numbers does not depend on labels or on the order in which images were sharded: images with
        equal numbers are equal.
        """
        parts = []
        for number, rows in self._pieces:
            index = self.indexes[number]
            content = index.crc32[rows].astype(np.uint64) << np.uint64(32) | index.size[rows].astype(np.uint64)
            parts.append(scatter(content) ^ scatter(index.camid[rows].astype(np.uint64) + np.uint64(1)))
        return np.concatenate(parts)


def labelled_rows(view: View) -> np.ndarray:
    """The rows of a view that labelled batches are drawn from: images of persons with an identity, `(N,)` rising."""
    ranges = np.concatenate(view.identities)[:, :2]
    rows = np.concatenate([np.arange(first, past) for first, past in ranges.tolist()])
    return rows[view.column("role", rows) == PERSON]
