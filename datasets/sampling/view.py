"""The images that a stage reads: one split of one or more datasets, under one row number."""

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
    """One or more splits of several datasets, one after the other; a *row* is a position in it.

    Args:
        indexes: The datasets, in the order that numbers them.
        splits: Which of their images, in this order.

    Raises:
        DataError: A dataset has none of these images.
    """

    def __init__(self, indexes: Sequence[Index], *splits: Split):
        self.indexes = list(indexes)
        pieces = [(number, index.rows(split)) for number, index in enumerate(self.indexes) for split in splits]
        for index in self.indexes:
            if not any(index.count(split) for split in splits):
                raise DataError(f"{index.root}: no images in {' or '.join(splits)}; wanted at least one.")
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
        """The shard that each row lies in, `(N,)`, numbered through all datasets."""
        starts = np.cumsum([0, *(len(index.shards) for index in self.indexes)])
        return starts[self.locate(rows)[0]] + self.column("shard", rows)

    def side_by_side(self, dataset: int) -> bool:
        """Whether the images of an identity of that dataset lie side by side in its shards."""
        return True

    def cameras(self) -> list[tuple[str, int]]:
        """The (dataset, camid) of every camera, sorted: the order of per-camera heads."""
        found = {(self.indexes[number].name, int(camid)) for number, rows in self._pieces
                 for camid in np.unique(self.indexes[number].camid[rows])}
        return sorted(found)

    @cached_property
    def camera_names(self) -> dict[tuple[str, int], str]:
        """(dataset, camid) → what its owner calls the camera, of those that have a name."""
        return {(index.name, camid): name for index in self.indexes for camid, name in index.camera_names.items()}

    @cached_property
    def image(self) -> tuple[int, int] | None:
        """Height and width where every image is stored at one size, else None."""
        sizes = {index.image for index in self.indexes}
        return sizes.pop() if len(sizes) == 1 else None

    @cached_property
    def identities(self) -> list[np.ndarray]:
        """Every identity's first row, row past the end, and number of images with role person between them.

        One `(identities, 3)` array a dataset, without the identities that have no such image. The images of one
        identity lie side by side in an index, those without one at the end of their split; so an identity with images
        in two of the view's splits counts twice.
        """
        tables: list[list[np.ndarray]] = [[np.empty((0, 3), np.int64)] for _ in self.indexes]
        for start, (number, rows) in zip(self._starts, self._pieces, strict=False):
            index = self.indexes[number]
            known = slice(rows.start, rows.start + int(np.count_nonzero(index.labelled[rows])))
            if known.stop > known.start:
                pid = index.pid[known]
                first = np.concatenate([[0], np.flatnonzero(pid[1:] != pid[:-1]) + 1])
                past = np.append(first[1:], len(pid))
                persons = np.add.reduceat(index.role[known] == PERSON, first, dtype=np.int64)
                tables[number].append(np.stack([start + first, start + past, persons], 1)[persons > 0])
        return [np.concatenate(table) for table in tables]

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.concatenate([table[:, 0] for table in self.identities])

    def identity(self, rows: np.ndarray) -> np.ndarray:
        """Number of the identity of each row, `(N,)`, unique over all datasets; the rows must be of `identities`."""
        return np.searchsorted(self._first_rows, rows, side="right") - 1

    def fingerprints(self) -> np.ndarray:
        """A number for each image that depends on its bytes and camera alone, `(N,)` uint64.

        What is ordered by it does not depend on labels, nor on the order in which images were sharded: where two
        numbers are equal, so are the images.
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
