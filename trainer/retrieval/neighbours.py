"""The nearest images of each image, by an exact search in blocks that ranks share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from embae.trainer.retrieval.fixed_point import blocks
from embae.trainer.retrieval.work_split import WorkSplit

# Similarities computed at a time by a thread, 16 MiB.
_SIMILARITIES = 2**21
# Images whose neighbours are searched at a time.
_ROWS = 4096
# Candidates at a time; few at first, because all of the first ones are sorted.
_FIRST, _COLUMNS = 4096, 2**14
_NONE = 2**62


class Vectors(Protocol):
    """Rows of `(N, F)` that are read as arrays when they are indexed; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def nearest(
    x: Vectors, k: int, *, step: float = 2.0**-28, split: WorkSplit | None = None, apart: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each image, by an exact search in blocks.

    Args:
        x: `(N, F)` from `fixed_point`, or an object that reads rows of it.
        k: The number of neighbours, the image itself included.
        step: The step that squared distances, 2 − 2s, are rounded to; the default is far below what float32 features
            resolve.
        split: The ranks, each of which searches for a share of the images; it does not change the result.
        apart: `(N,)`, the group of each image: other images of its group are not its neighbours.

    Returns:
        `(N, min(k, N))` int32: the image itself, then the others by distance, then by index, filled up with the image
        itself if there are not enough; and `(N,)`, the squared distance to the farthest image, not rounded.
    """
    split, count = split or WorkSplit(), len(x)
    neighbours, farthest = np.zeros((count, min(k, count)), dtype=np.int32), np.zeros(count)
    share = split.share(count)
    with ThreadPoolExecutor(split.threads) as pool:
        search = _Search(x, neighbours.shape[1], step, pool, apart)
        for block in blocks(share.stop - share.start, _ROWS):
            rows = slice(share.start + block.start, share.start + block.stop)
            keys, farthest[rows] = search.run(x[rows], rows)
            neighbours[rows] = np.where(keys < _NONE, keys & (2**32 - 1), np.arange(rows.start, rows.stop)[:, None])
    return split.add(neighbours), split.add(farthest)


def nearest_of(query: np.ndarray, x: Vectors, k: int, *, step: float, threads: int) -> np.ndarray:
    """The k images nearest to each query, which is not among the images: `(Q, min(k, N))`, by distance, then by index.

    Args:
        query: `(Q, F)` from `fixed_point`; all are searched at once, so a few thousand.
        x: `(N, F)` from `fixed_point`, or an object that reads rows of it.
        k: The number of neighbours.
        step: The step that squared distances are rounded to.
        threads: The number of threads.
    """
    with ThreadPoolExecutor(threads) as pool:
        keys, _ = _Search(x, min(k, len(x)), step, pool, None).run(query, None)
    return keys & (2**32 - 1)


@dataclass(frozen=True)
class _Search:
    """An exact search for the k nearest of the images `x`; see `nearest` for the attributes."""

    x: Vectors
    k: int
    step: float
    pool: ThreadPoolExecutor
    apart: np.ndarray | None

    def run(self, query: np.ndarray, rows: slice | None) -> tuple[np.ndarray, np.ndarray]:
        """Searches for the neighbours of some queries.

        Args:
            query: `(Q, F)`.
            rows: Their rows in `x`; None if they are not among its images.

        Returns:
            `(Q, k)` int64, the k smallest keys of each, a key being the distance in steps and the index of the image in
            one integer; and `(Q,)`, the largest squared distance.
        """
        scaled = query * (-2 / self.step)
        keys, largest = np.full((len(scaled), self.k), _NONE), np.full(len(scaled), -np.inf)
        start = 0
        while start < len(self.x):
            columns = slice(start, min(start + (_COLUMNS if start else _FIRST), len(self.x)))
            candidates = self.x[columns]

            def update(block: slice, columns: slice = columns, candidates: np.ndarray = candidates) -> None:
                steps = scaled[block] @ candidates.T
                np.maximum(largest[block], steps.max(axis=1), out=largest[block])
                if rows is not None:
                    self._exclude(steps, slice(rows.start + block.start, rows.start + block.stop), columns)
                keys[block] = _merged(keys[block], steps, columns.start)

            list(self.pool.map(update, blocks(len(scaled), _SIMILARITIES // len(candidates))))
            start = columns.stop
        return keys, 2 + largest * self.step

    def _exclude(self, steps: np.ndarray, rows: slice, columns: slice) -> None:
        """Moves the other images of each image's group behind all others, and each image itself to the front."""
        if self.apart is not None:
            steps[self.apart[rows][:, None] == self.apart[columns]] = _NONE >> 32  # no distance is as large
        diagonal = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        steps[diagonal - rows.start, diagonal - columns.start] = -(2.0**30)  # all others are within ±2^29


def _merged(keys: np.ndarray, steps: np.ndarray, column: int) -> np.ndarray:
    """The k smallest of each row's keys `(n, k)` and of the keys of images from `column` on, `steps` `(n, m)` away."""
    count, k = keys.shape
    if keys[0, -1] == _NONE:
        new = np.rint(steps).astype(np.int64) << 32 | np.arange(column, column + steps.shape[1])
        merged = np.concatenate([keys, new], axis=1)
        merged.partition(k - 1, axis=1)
        return np.sort(merged[:, :k], axis=1)
    # Few images are nearer than the last key, and an image that is as near comes after it: its index is larger.
    rows, columns = np.nonzero(steps <= ((keys[:, -1] >> 32) - 0.5)[:, None])
    new = np.rint(steps[rows, columns]).astype(np.int64) << 32 | (column + columns)
    merged = np.concatenate([keys.ravel(), new])
    order = np.lexsort((merged, np.concatenate([np.repeat(np.arange(count), k), rows])))
    starts = np.arange(count) * k + np.searchsorted(rows, np.arange(count))
    return merged[order][starts[:, None] + np.arange(k)]


def similarities(x: Vectors, neighbours: sparse.csr_matrix, split: WorkSplit | None = None) -> np.ndarray:
    """Cosine similarity of each image and each of its neighbours, in the order of `neighbours.indices`."""
    split = split or WorkSplit()
    columns, indptr = neighbours.indices, neighbours.indptr
    cosine, share = np.zeros(len(columns)), split.share(len(x))

    def measure(block: slice) -> None:
        rows = slice(share.start + block.start, share.start + block.stop)
        entries = slice(indptr[rows.start], indptr[rows.stop])
        images, column = np.unique(columns[entries], return_inverse=True)
        row = np.repeat(np.arange(block.stop - block.start), np.diff(indptr[rows.start : rows.stop + 1]))
        cosine[entries] = (x[rows] @ x[images].T)[row, column]

    with ThreadPoolExecutor(split.threads) as pool:
        list(pool.map(measure, blocks(share.stop - share.start, 16)))  # adjacent images often share many neighbours
    return split.add(cosine)
