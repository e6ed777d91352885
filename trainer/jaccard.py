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

import numpy as np
from scipy import sparse

from embae.trainer.fixed_point import blocks, check_finite, fixed_point

# Numbers held at a time by the blocks: of similarities (twice 128 MiB), and of sums and their terms.
_SIMILARITIES, _SUMS, _TERMS = 2**24, 2**20, 2**21
# Rows at a time of sparse products.
_ROWS = 4096
# Pairs in a result: 4 GiB.
_MOST = 2**29


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
    nearest = _nearest(x, max(k1, k2))
    weights = _weights(x, _expanded(_reciprocal(nearest, k1), _reciprocal(nearest, round(k1 / 2) + 1)))
    del x
    if k2 > 1:
        few = nearest[:, :k2]
        weights = (_rows(few, 1 / few.shape[1]) @ weights).tocsr()
        weights.sort_indices()
    return _distances(weights, farthest)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    """The k nearest images of each, `(N, min(k, N))` int64: itself, then by distance, then by index."""
    count = len(x)
    k = min(k, count)
    nearest = np.empty((count, k), dtype=np.int64)
    for rows in blocks(count, max(1, _SIMILARITIES // count)):
        # Distance (in steps of 2^-28, far below what float32 features tell apart) and index in one integer: selecting
        # the smallest is quick, and there are no ties.
        steps = x[rows] @ x.T
        steps *= -(2.0**29)
        keys = np.rint(steps, out=steps).astype(np.int64)
        keys <<= 32
        keys |= np.arange(count)
        own = np.arange(rows.start, rows.stop)
        keys[own - rows.start, own] = own - 2**62
        keys.partition(k - 1, axis=1)
        nearest[rows] = np.sort(keys[:, :k], axis=1) & (2**32 - 1)
    return nearest


def _rows(columns: np.ndarray, value: float | int) -> sparse.csr_matrix:
    """`(N, N)` with `value` in `columns`, `(N, K)` of distinct columns in each row."""
    count, k = columns.shape
    indptr = np.arange(0, count * k + 1, k)
    return sparse.csr_matrix((np.full(count * k, value), columns.ravel(), indptr), shape=(count, count))


def _reciprocal(nearest: np.ndarray, k: int) -> sparse.csr_matrix:
    """R(i, k): ones, `(N, N)` int64, symmetric."""
    forward = _rows(nearest[:, :k], 1)
    return forward.multiply(forward.T.tocsr()).tocsr()


def _expanded(close: sparse.csr_matrix, half: sparse.csr_matrix) -> sparse.csr_matrix:
    """R*(i): positive numbers, `(N, N)`, sorted indices; every row holds itself."""
    sizes = np.diff(half.indptr)
    parts = []
    for rows in blocks(close.shape[0], _ROWS):
        own = close[rows]
        # How many of the half's neighbours are in R(i): `half` is symmetric, a transpose isn't needed.
        shared = (own @ half).multiply(own).tocsr()
        shared.data = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.int64)
        parts.append(own + shared @ half)
    whole = sparse.vstack(parts, format="csr")
    whole.sort_indices()
    return whole


def _weights(x: np.ndarray, neighbours: sparse.csr_matrix) -> sparse.csr_matrix:
    """V: weights of the neighbours, each row's sum 1."""
    neighbours.eliminate_zeros()
    columns, indptr = neighbours.indices, neighbours.indptr
    similarity = np.empty(len(columns))
    for i in range(len(x)):
        entries = slice(indptr[i], indptr[i + 1])
        similarity[entries] = x[columns[entries]] @ x[i]
    weights = np.exp(2 * similarity - 2)
    weights /= np.repeat(np.add.reduceat(weights, indptr[:-1]), np.diff(indptr))
    return sparse.csr_matrix((weights, columns, indptr), shape=neighbours.shape)


def _distances(weights: sparse.csr_matrix, farthest: float) -> sparse.csr_matrix:
    """d from V' (rows with sorted indices, none empty), block by block."""
    count = weights.shape[0]
    by_column = weights.tocsc()
    degree = np.diff(by_column.indptr).astype(np.int64)
    terms = np.add.reduceat(degree[weights.indices], weights.indptr[:-1])
    columns, values, found = [], [], [np.zeros(1, dtype=np.int64)]
    pairs = 0
    for rows in _balanced(terms, max(1, _SUMS // count)):
        sums = _shared(weights, by_column, degree, rows)
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


def _shared(
    weights: sparse.csr_matrix, by_column: sparse.csc_matrix, degree: np.ndarray, rows: slice
) -> np.ndarray:
    """m_ij = Σ_k min(V'_ik, V'_jk) of a block of rows with all images, flat: `(rows · N,)`.

    Terms of a pair are added in the order of k, from either side: m is symmetric bit for bit.
    """
    count = weights.shape[0]
    entries = slice(weights.indptr[rows.start], weights.indptr[rows.stop])
    k = weights.indices[entries]
    row = np.repeat(np.arange(rows.stop - rows.start), np.diff(weights.indptr[rows.start : rows.stop + 1]))
    # For each number of these rows all numbers of its column.
    times = degree[k]
    ends = np.cumsum(times)
    other = np.arange(ends[-1]) + np.repeat(by_column.indptr[k] - (ends - times), times)
    least = np.minimum(np.repeat(weights.data[entries], times), by_column.data[other])
    place = np.repeat(row * count, times) + by_column.indices[other]
    return np.bincount(place, weights=least, minlength=(rows.stop - rows.start) * count)


def _balanced(terms: np.ndarray, most: int) -> Iterator[slice]:
    """Blocks of at most `most` rows with at most `_TERMS` terms, or a single row."""
    ends = np.cumsum(terms)
    start = 0
    while start < len(terms):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + _TERMS, side="right"))
        stop = min(max(stop, start + 1), start + most)
        yield slice(start, min(stop, len(terms)))
        start = stop
