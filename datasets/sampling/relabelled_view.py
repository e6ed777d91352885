"""A view whose last dataset has pseudo-labels instead of identities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Split
from embae.datasets.sampling.view import PERSON, View


class RelabelledView(View):
    """A view of one split in which the last dataset has pseudo-labels as pids; images that they leave out are missing.

    The images of a pseudo-label are adjacent, in the order of the labels, and every image has role person: pids and
    roles of the index are not used. The other datasets come first, unchanged.

    Args:
        indexes: The datasets.
        split: Their split.
        labels: `(images,)` int64 of the last dataset, −1 for an image that is left out.

    Raises:
        DataError: A split is empty, or every image is left out.
    """

    def __init__(self, indexes: Sequence[Index], split: Split, labels: np.ndarray):
        super().__init__(indexes, split)
        if not (labels >= 0).any():
            raise DataError(f"{indexes[-1].root}: the clustering left out every image; set a larger eps, or a lower "
                            "similarity")
        *others, last = indexes
        before = View(others, split) if others else None
        self._before = len(before) if before else 0
        # Within a label in order of content, so that the order of the index, which depends on pids, has no effect.
        order = np.lexsort((View([last], split).fingerprints(), labels))
        self._order = order[labels[order] >= 0]
        self._labels = labels[self._order]
        first = self._before + np.concatenate([[0], np.flatnonzero(np.diff(self._labels)) + 1])
        past = np.append(first[1:], len(self))
        self.identities = [*(before.identities if before else []), np.stack([first, past, past - first], 1)]

    def __len__(self) -> int:
        return self._before + len(self._order)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the same images in a view that leaves no image out."""
        places, relabelled = np.array(rows), rows >= self._before
        places[relabelled] = self._before + self._order[rows[relabelled] - self._before]
        return places

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().locate(self._places(rows))

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name not in ("pid", "labelled", "role"):
            return super().column(name, rows)
        values, relabelled = np.empty(len(rows), np.int64), rows >= self._before
        values[~relabelled] = super().column(name, rows[~relabelled])
        values[relabelled] = {"pid": self._labels[rows[relabelled] - self._before], "labelled": 1, "role": PERSON}[name]
        return values

    def is_grouped_by_identity(self, dataset: int) -> bool:
        return dataset < len(self.indexes) - 1

    def cameras(self) -> list[tuple[str, int]]:
        pairs = np.unique(np.stack([*self.locate(rows := np.arange(len(self))), self.column("camid", rows)])[[0, 2]],
                          axis=1)
        return sorted((self.names[dataset], camid) for dataset, camid in pairs.T.tolist())

    def fingerprints(self) -> np.ndarray:
        return super().fingerprints()[self._places(np.arange(len(self)))]
