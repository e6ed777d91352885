"""Jaccard distance of k-reciprocal neighbours (Zhong et al. 2017, arXiv 1701.08398), in sparse matrices.

In the form used by SpCL (Ge et al. 2020, arXiv 2006.02713) and Cluster Contrast (Dai et al. 2021, arXiv 2103.11568): on
unit vectors, without mixing in the original distance. With s_ij the cosine similarity::

    N(i, k)   the k images nearest to i, itself the first
    R(i, k)   the reciprocal ones: j of N(i, k) with i in N(j, k)
    R*(i)     R(i, k1), and R(j, k1/2 + 1) of each j of R(i, k1) of which more than two thirds are in R(i, k1)
    V_ij      exp(2 s_ij − 2) for j of R*(i), else 0; then rows divided by their sum
    V'_i      mean of V_j over the j of N(i, k2)
    d_ij      1 − m / (2 − m) with m = Σ_k min(V'_ik, V'_jk)

k counts the image itself, as in their code: k1 = 30 is 29 others (Zhong et al.: 30), the half is 16 with itself.

V' has some hundred numbers a row, and only images that share a column have a distance below 1: memory grows with the
number of images, not with its square, and nothing here is N × N but the pairs of the result. The exception is a
collapse: if thousands of images are one point, these are all near each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from scipy import sparse

from embae.trainer.fixed_point import blocks, check_finite, fixed_point
from embae.trainer.spread import Spread

# Numbers held at a time by the blocks: of similarities (16 MiB a thread), and of sums and their terms.
_SIMILARITIES, _SUMS, _TERMS = 2**21, 2**20, 2**21
# Rows at a time of sparse products, and of images whose neighbours are looked for.
_ROWS = 4096
# Among how many at a time; few at first, of which all are sorted.
_FIRST, _COLUMNS = 4096, 2**14
_NONE = 2**62
# Pairs in a result: 4 GiB.
_MOST = 2**29


class Vectors(Protocol):
    """Rows of `(N, F)`, an array each time; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def jaccard_distances(
    features: np.ndarray, *, k1: int = 30, k2: int = 6, farthest: float = 1.0
) -> sparse.csr_matrix:
    """Jaccard distances of all images.

    The same bit for bit in any number of threads: similarities are exact sums, and ties go to the lower index.

    Args:
        features: `(N, F)`, divided by their length here; a zero vector stays zero.
        k1: Nearest images, itself included, in which reciprocal neighbours are looked for; N where that is less.
        k2: Nearest images, itself included, whose rows are averaged; 1 for no averaging.
        farthest: Pairs farther apart are left out. DBSCAN needs none beyond its eps, and most pairs are beyond.

    Returns:
        `(N, N)` float32, symmetric, sorted indices. It holds the pairs with a distance below 1 and up to `farthest`,
        zeros included, and a diagonal of zeros. Without `farthest` a pair it doesn't hold has distance 1.

    Raises:
        ValueError: Features are no finite matrix with at least one row, k1 or k2 is less than 1, or the pairs take more
            than 4 GiB.
    """
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 = {k1} and k2 = {k2} must be at least 1")
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must be (N, F), not of shape {features.shape}")
    check_finite(features, "the features of image {} are")
    x = fixed_point(features)
    near, _ = nearest(x, max(k1, k2))
    neighbours = expanded(reciprocal(near, k1), reciprocal(near, round(k1 / 2) + 1))
    weights = normalised(neighbours, np.exp(2 * similarities(x, neighbours) - 2))
    del x, neighbours
    if k2 > 1:
        weights = averaged(near, k2, weights)
    return _distances(weights, farthest)


def nearest(
    x: Vectors, k: int, *, step: float = 2.0**-28, spread: Spread | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each, by an exact search of blocks.

    Args:
        x: `(N, F)`, or what gives rows of it; of `fixed_point`.
        k: How many, itself included.
        step: What squared distances, 2 − 2s, are rounded to; the default is far below what float32 features tell apart.
        spread: The ranks, which search for a share of the images each; it does not change the result.

    Returns:
        `(N, min(k, N))` int32, itself, then by distance, then by index; and `(N,)`, the squared distance to the image
        farthest away, not rounded.
    """
    spread, count = spread or Spread(), len(x)
    found, farthest = np.zeros((count, min(k, count)), dtype=np.int32), np.zeros(count)
    own = spread.own(count)
    with ThreadPoolExecutor(spread.threads) as pool:
        for some in blocks(own.stop - own.start, _ROWS):
            rows = slice(own.start + some.start, own.start + some.stop)
            keys, farthest[rows] = _search(x, rows, found.shape[1], step, pool)
            found[rows] = keys & (2**32 - 1)
    return spread.add(found), spread.add(farthest)


def _search(x: Vectors, rows: slice, k: int, step: float, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
    """Distance in steps and index in one integer, the k smallest of each row; and the largest squared distances."""
    mine = x[rows] * (-2 / step)
    keys, most = np.full((len(mine), k), _NONE), np.full(len(mine), -np.inf)
    start = 0
    while start < len(x):
        stop = start + (_COLUMNS if start else _FIRST)
        others = x[start:stop]
        _look(mine, others, rows.start, start, keys, most, pool)
        start = stop
    return keys, 2 + most * step


def _look(
    mine: np.ndarray, others: np.ndarray, row: int, column: int, keys: np.ndarray, most: np.ndarray,
    pool: ThreadPoolExecutor
) -> None:
    """Takes some more images, of which the first is number `column`, into what `_search` returns."""

    def look(some: slice) -> None:
        steps = mine[some] @ others.T
        np.maximum(most[some], steps.max(axis=1), out=most[some])
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


def _rows(columns: np.ndarray, value: np.generic, width: int) -> sparse.csr_matrix:
    """`(n, width)` with `value` in `columns`, `(n, K)` of distinct columns in each row."""
    count, k = columns.shape
    indptr = np.arange(0, count * k + 1, k)
    return sparse.csr_matrix((np.full(count * k, value), columns.ravel(), indptr), shape=(count, width))


def averaged(nearest: np.ndarray, k2: int, weights: sparse.csr_matrix) -> sparse.csr_matrix:
    """V' of some images `(n, N)`, sorted indices, from their nearest `(n, K)` and V."""
    few = nearest[:, :k2]
    found = (_rows(few, np.float64(1 / few.shape[1]), weights.shape[1]) @ weights).tocsr()
    found.sort_indices()
    return found


def reciprocal(nearest: np.ndarray, k: int) -> sparse.csr_matrix:
    """R(i, k): ones, `(N, N)` int32, symmetric."""
    forward = _rows(nearest[:, :k], np.int32(1), len(nearest))
    return forward.multiply(forward.T.tocsr()).tocsr()


def expanded(close: sparse.csr_matrix, half: sparse.csr_matrix) -> sparse.csr_matrix:
    """R*(i): positive numbers, `(N, N)`, sorted indices; every row holds itself."""
    sizes = np.diff(half.indptr)
    parts = []
    for rows in blocks(close.shape[0], _ROWS):
        own = close[rows]
        # How many of the half's neighbours are in R(i): `half` is symmetric, a transpose isn't needed.
        shared = (own @ half).multiply(own).tocsr()
        shared.data = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.int32)
        parts.append(own + shared @ half)
    whole = sparse.vstack(parts, format="csr")
    whole.eliminate_zeros()
    whole.sort_indices()
    return whole


def similarities(x: Vectors, neighbours: sparse.csr_matrix, spread: Spread | None = None) -> np.ndarray:
    """Cosine similarity of each image and each of its neighbours, in the order of `neighbours.indices`; by ranks."""
    spread = spread or Spread()
    columns, indptr = neighbours.indices, neighbours.indptr
    found, own = np.zeros(len(columns)), spread.own(len(x))

    def measure(some: slice) -> None:
        rows = slice(own.start + some.start, own.start + some.stop)
        entries = slice(indptr[rows.start], indptr[rows.stop])
        others, which = np.unique(columns[entries], return_inverse=True)
        row = np.repeat(np.arange(some.stop - some.start), np.diff(indptr[rows.start : rows.stop + 1]))
        found[entries] = (x[rows] @ x[others].T)[row, which]

    with ThreadPoolExecutor(spread.threads) as pool:
        list(pool.map(measure, blocks(own.stop - own.start, 16)))  # which share many neighbours, if any at all
    return spread.add(found)


def normalised(neighbours: sparse.csr_matrix, weights: np.ndarray) -> sparse.csr_matrix:
    """V: weights of the neighbours, each row's sum 1."""
    indptr = neighbours.indptr
    weights /= np.repeat(np.add.reduceat(weights, indptr[:-1]), np.diff(indptr))
    return sparse.csr_matrix((weights, neighbours.indices, indptr), shape=neighbours.shape)


def _distances(weights: sparse.csr_matrix, farthest: float) -> sparse.csr_matrix:
    """d from V' (rows with sorted indices, none empty), block by block."""
    count = weights.shape[0]
    by_column = weights.tocsc()
    degree = np.diff(by_column.indptr).astype(np.int64)
    terms = np.add.reduceat(degree[weights.indices], weights.indptr[:-1])
    columns, values, found = [], [], [np.zeros(1, dtype=np.int64)]
    pairs = 0
    for rows in balanced(terms, max(1, _SUMS // count)):
        sums = shared(weights[rows], by_column, degree)
        place = np.flatnonzero(sums)
        sums = sums[place]
        distance = np.maximum(1 - sums / (2 - sums), 0).astype(np.float32)
        # The sum over a row is 1 up to rounding.
        diagonal = np.arange(rows.stop - rows.start) * (count + 1) + rows.start
        distance[np.searchsorted(place, diagonal)] = 0
        near = (distance < 1) & (distance <= farthest)
        place, distance = place[near], distance[near]
        ends = np.searchsorted(place, np.arange(1, rows.stop - rows.start + 1) * count)
        columns.append((place % count).astype(np.int32))
        values.append(distance)
        found.append(pairs + ends)
        pairs += len(place)
        if pairs > _MOST:
            raise ValueError(
                f"{rows.stop:,} of {count:,} images have {pairs:,} near pairs, too many to hold: have the features "
                "collapsed? If not, give a smaller `farthest`"
            )
    # One after the other, so that only one of them is held twice.
    indices = np.concatenate(columns)
    columns.clear()
    data = np.concatenate(values)
    values.clear()
    whole = sparse.csr_matrix((data, indices, np.concatenate(found)), shape=weights.shape)
    whole.has_sorted_indices = True
    return whole


def shared(rows: sparse.csr_matrix, by_column: sparse.csc_matrix, degree: np.ndarray) -> np.ndarray:
    """m_ij = Σ_k min(V'_ik, V'_jk) of some images and some others, flat: `(n · m,)`.

    Terms of a pair are added in the order of k, from either side: m is symmetric bit for bit.

    Args:
        rows: V' of the ones, `(n, N)`, sorted indices.
        by_column: V' of the others, `(m, N)`.
        degree: `(N,)` int64, the numbers of each column of it.
    """
    count, k = by_column.shape[0], rows.indices
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    # For each number of these rows all numbers of its column.
    times = degree[k]
    ends = np.cumsum(times)
    other = np.arange(ends[-1] if len(ends) else 0) + np.repeat(by_column.indptr[k] - (ends - times), times)
    least = np.minimum(np.repeat(rows.data, times), by_column.data[other])
    place = np.repeat(row * count, times) + by_column.indices[other]
    return np.bincount(place, weights=least, minlength=rows.shape[0] * count)


def balanced(terms: np.ndarray, most: int) -> Iterator[slice]:
    """Blocks of at most `most` rows with at most `_TERMS` terms, or a single row."""
    ends = np.cumsum(terms)
    start = 0
    while start < len(terms):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + _TERMS, side="right"))
        stop = min(max(stop, start + 1), start + most)
        yield slice(start, min(stop, len(terms)))
        start = stop
