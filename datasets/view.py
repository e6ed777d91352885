"""The images that a stage reads: one split of one or more datasets, under one row number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.keyed import scatter
from embae.datasets.records import Split


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

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def names(self) -> list[str]:
        """Names of the datasets, in order."""
        return [index.name for index in self.indexes]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dataset number and row in its index, of each row: two `(N,)` arrays."""
        piece = np.searchsorted(self._starts, rows, side="right") - 1
        numbers = np.array([number for number, _ in self._pieces])
        firsts = np.array([local.start for _, local in self._pieces])
        return numbers[piece], rows - self._starts[piece] + firsts[piece]

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of the index (``pid``, ``camid``, …) at these rows, `(N,)`."""
        dataset, local = self.locate(rows)
        values = np.empty(len(rows), np.int64)
        for number in np.unique(dataset):
            at = dataset == number
            values[at] = getattr(self.indexes[number], name)[local[at]]
        return values

    def cameras(self) -> list[tuple[str, int]]:
        """The (dataset, camid) of every camera, sorted: the order of per-camera heads."""
        found = {(self.indexes[number].name, int(camid)) for number, rows in self._pieces
                 for camid in np.unique(self.indexes[number].camid[rows])}
        return sorted(found)

    @cached_property
    def image(self) -> tuple[int, int] | None:
        """Height and width where every image is stored at one size, else None."""
        sizes = {index.image for index in self.indexes}
        return sizes.pop() if len(sizes) == 1 else None

    @cached_property
    def identities(self) -> list[np.ndarray]:
        """First row and row past the end of every identity: one `(identities, 2)` array a dataset.

        The images of one identity lie side by side in an index, those without one at the end of their split.
        """
        tables: list[list[np.ndarray]] = [[np.empty((0, 2), np.int64)] for _ in self.indexes]
        for start, (number, rows) in zip(self._starts, self._pieces, strict=False):
            index = self.indexes[number]
            known = int(np.count_nonzero(index.labelled[rows]))
            pid = index.pid[rows.start:rows.start + known]
            bounds = np.concatenate([[0], np.flatnonzero(pid[1:] != pid[:-1]) + 1, [known]]) if known else np.zeros(1, int)
            tables[number].append(start + np.stack([bounds[:-1], bounds[1:]], 1))
        return [np.concatenate(table) for table in tables]

    def identity(self, rows: np.ndarray) -> np.ndarray:
        """Number of the identity of each row, unique over all datasets, `(N,)`; the rows must be labelled."""
        first = np.concatenate([table[:, 0] for table in self.identities])
        return np.searchsorted(first, rows, side="right") - 1

    def fingerprints(self) -> np.ndarray:
        """A number an image that depends on its bytes and camera alone, `(N,)` uint64.

        What is ordered by it does not depend on labels, nor on the order in which images were sharded.
        """
        parts = []
        for number, rows in self._pieces:
            index = self.indexes[number]
            content = index.crc32[rows].astype(np.uint64) << np.uint64(32) | index.size[rows].astype(np.uint64)
            parts.append(scatter(content) ^ scatter(index.camid[rows].astype(np.uint64) + np.uint64(1)))
        return np.concatenate(parts)
