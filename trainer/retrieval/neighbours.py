"""The nearest images of each, by an exact search of blocks that ranks share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from scipy import sparse

from embae.trainer.retrieval.fixed_point import blocks
from embae.trainer.retrieval.work_split import WorkSplit

# Similarities held at a time, 16 MiB a thread.
_SIMILARITIES = 2**21
# Images at a time whose neighbours are looked for.
_ROWS = 4096
# Among how many at a time; few at first, of which all are sorted.
_FIRST, _COLUMNS = 4096, 2**14
_NONE = 2**62


class Vectors(Protocol):
    """Rows of `(N, F)`, an array each time; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def nearest(
    x: Vectors, k: int, *, step: float = 2.0**-28, split: WorkSplit | None = None, apart: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each, by an exact search of blocks.

    Args:
        x: `(N, F)`, or what gives rows of it; of `fixed_point`.
        k: How many, itself included.
        step: What squared distances, 2 − 2s, are rounded to; the default is far below what float32 features tell apart.
        split: The ranks, which search for a share of the images each; it does not change the result.
        apart: `(N,)`, the group of each image: the others of its own group are not looked at.

    Returns:
        `(N, min(k, N))` int32, itself, then by distance, then by index, and where there are not so many, itself again;
        and `(N,)`, the squared distance to the image farthest away, not rounded.
    """
    split, count = split or WorkSplit(), len(x)
    found, farthest = np.zeros((count, min(k, count)), dtype=np.int32), np.zeros(count)
    own = split.share(count)
    with ThreadPoolExecutor(split.threads) as pool:
        for some in blocks(own.stop - own.start, _ROWS):
            rows = slice(own.start + some.start, own.start + some.stop)
            keys, farthest[rows] = _search(x[rows], rows, x, found.shape[1], step, pool, apart)
            found[rows] = np.where(keys < _NONE, keys & (2**32 - 1), np.arange(rows.start, rows.stop)[:, None])
    return split.add(found), split.add(farthest)


def nearest_of(query: np.ndarray, x: Vectors, k: int, *, step: float, threads: int) -> np.ndarray:
    """The k images nearest to each query, which is none of them: `(Q, min(k, N))`, by distance, then by index.

    Args:
        query: `(Q, F)`, of `fixed_point`; searched for at once, so a few thousand.
        x: `(N, F)`, or what gives rows of it; of `fixed_point`.
        k: How many.
        step: What squared distances are rounded to.
        threads: How many search.
    """
    with ThreadPoolExecutor(threads) as pool:
        keys, _ = _search(query, None, x, min(k, len(x)), step, pool, None)
    return keys & (2**32 - 1)


def _search(
    query: np.ndarray, rows: slice | None, x: Vectors, k: int, step: float, pool: ThreadPoolExecutor,
    apart: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in steps and index in one integer, the k smallest of each of some images, `rows` of x if they are among
    them; and the largest squared distances."""
    mine = query * (-2 / step)
    keys, most = np.full((len(mine), k), _NONE), np.full(len(mine), -np.inf)
    start = 0
    while start < len(x):
        stop = start + (_COLUMNS if start else _FIRST)
        others = x[start:stop]
        groups = None if apart is None else (apart[rows], apart[start:stop])
        _look(mine, others, rows and rows.start, start, keys, most, pool, groups)
        start = stop
    return keys, 2 + most * step


def _look(
    mine: np.ndarray, others: np.ndarray, row: int | None, column: int, keys: np.ndarray, most: np.ndarray,
    pool: ThreadPoolExecutor, groups: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """Takes some more images, of which the first is number `column`, into what `_search` returns."""

    def look(some: slice) -> None:
        steps = mine[some] @ others.T
        np.maximum(most[some], steps.max(axis=1), out=most[some])
        if groups:
            steps[groups[0][some, None] == groups[1]] = _NONE >> 32  # no distance is as large
        if row is not None:
            own = np.arange(max(row + some.start, column), min(row + some.stop, column + len(others)))
            steps[own - row - some.start, own - column] = -(2.0**30)  # itself: before all others, 2^29 is the largest
        keys[some] = _merged(keys[some], steps, column)

    list(pool.map(look, blocks(len(mine), _SIMILARITIES // len(others))))


def _merged(keys: np.ndarray, steps: np.ndarray, column: int) -> np.ndarray:
    """The k smallest of each row's keys `(n, k)` and those of images from `column` on, `(n, m)` away."""
    count, k = keys.shape
    if keys[0, -1] == _NONE:
        fresh = np.rint(steps).astype(np.int64) << 32 | np.arange(column, column + steps.shape[1])
        every = np.concatenate([keys, fresh], axis=1)
        every.partition(k - 1, axis=1)
        return np.sort(every[:, :k], axis=1)
    # Few are nearer than the last of those found, and one as near comes after it: its index is larger.
    rows, columns = np.nonzero(steps <= ((keys[:, -1] >> 32) - 0.5)[:, None])
    fresh = np.rint(steps[rows, columns]).astype(np.int64) << 32 | (column + columns)
    merged, of = np.concatenate([keys.ravel(), fresh]), np.concatenate([np.repeat(np.arange(count), k), rows])
    order = np.lexsort((merged, of))
    starts = np.arange(count) * k + np.searchsorted(rows, np.arange(count))
    return merged[order][starts[:, None] + np.arange(k)]


def similarities(x: Vectors, neighbours: sparse.csr_matrix, split: WorkSplit | None = None) -> np.ndarray:
    """Cosine similarity of each image and each of its neighbours, in the order of `neighbours.indices`; by ranks."""
    split = split or WorkSplit()
    columns, indptr = neighbours.indices, neighbours.indptr
    found, own = np.zeros(len(columns)), split.share(len(x))

    def measure(some: slice) -> None:
        rows = slice(own.start + some.start, own.start + some.stop)
        entries = slice(indptr[rows.start], indptr[rows.stop])
        others, which = np.unique(columns[entries], return_inverse=True)
        row = np.repeat(np.arange(some.stop - some.start), np.diff(indptr[rows.start : rows.stop + 1]))
        found[entries] = (x[rows] @ x[others].T)[row, which]

    with ThreadPoolExecutor(split.threads) as pool:
        list(pool.map(measure, blocks(own.stop - own.start, 16)))  # which share many neighbours, if any at all
    return split.add(found)
