"""Jaccard distance of k-reciprocal neighbours (Zhong et al. 2017, arXiv 1701.08398), in sparse matrices.

In the form used by SpCL (Ge et al. 2020, arXiv 2006.02713) and Cluster Contrast (Dai et al. 2021, arXiv 2103.11568): on
unit vectors, without mixing in the original distance. With s_ij the cosine similarity::

    N(i, k)   the k images nearest to i, itself the first
    R(i, k)   the reciprocal ones: j of N(i, k) with i in N(j, k)
    R*(i)     R(i, k1), and R(j, k1/2 + 1) of each j of R(i, k1) of which more than two thirds are in R(i, k1)
    V_ij      exp(2 s_ij − 2) for j of R*(i), else 0; then rows divided by their sum
    V'_i      mean of V_j over the j of N(i, k2)
    d_ij      1 − m / (2 − m) with m = Σ_k min(V'_ik, V'_jk)

k counts the image itself, as in their code: k1 = 30 is 29 others (Zhong et al.: 30), the half is 16 with itself. Only
for k2 above k1 is theirs another: it averages no more than the k1 images that it has looked for.

V' has some hundred numbers a row, and only images that share a column have a distance below 1: memory grows with the
number of images, not with its square, and nothing here is N × N but the pairs of the result. The exception is a
collapse: if thousands of images are one point, these are all near each other.

Ranks share what takes time: the search for neighbours, N² F products, the similarities, and the rows of d. Each holds
the features in float64 (1 GB for 100,000 images of 1280 numbers), N, V and V', and in the end all of the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from embae.trainer.retrieval.fixed_point import blocks, check_finite, fixed_point
from embae.trainer.retrieval.neighbours import nearest, similarities
from embae.trainer.retrieval.work_split import WorkSplit

# Numbers held at a time by the blocks: of sums and their terms.
_SUMS, _TERMS = 2**20, 2**21
# Rows at a time of sparse products.
_ROWS = 4096
# Pairs in a result: 4 GiB.
MOST_PAIRS = 2**29


def jaccard_distances(
    features: np.ndarray, *, k1: int = 30, k2: int = 6, farthest: float = 1.0, split: WorkSplit | None = None
) -> sparse.csr_matrix:
    """Jaccard distances of all images.

    The same bit for bit on any number of ranks and threads: similarities are exact sums, and ties go to the lower
    index.

    Args:
        features: `(N, F)`, divided by their length here; a zero vector stays zero. May be memory-mapped.
        k1: Nearest images, itself included, in which reciprocal neighbours are looked for; N where that is less.
        k2: Nearest images, itself included, whose rows are averaged; 1 for no averaging.
        farthest: Pairs farther apart are left out. DBSCAN needs none beyond its eps, and most pairs are beyond.
        split: The ranks, each with the same arguments; by default this process alone.

    Returns:
        On every rank, `(N, N)` float32, symmetric, sorted indices. It holds the pairs with a distance below 1 and up to
        `farthest`, zeros included, and a diagonal of zeros. Without `farthest` a pair it doesn't hold has distance 1.

    Raises:
        ValueError: Features are no finite matrix with at least one row, k1 or k2 is less than 1, or the pairs take more
            than 4 GiB.
    """
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 = {k1} and k2 = {k2} must be at least 1")
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must be (N, F), not of shape {features.shape}")
    check_finite(features, "the features of image {} are")
    x, split = fixed_point(features), split or WorkSplit()
    near, _ = nearest(x, max(k1, k2), split=split)
    neighbours = expanded(reciprocal(near, k1), reciprocal(near, round(k1 / 2) + 1))
    weights = normalised(neighbours, np.exp(2 * similarities(x, neighbours, split) - 2))
    del x, neighbours
    if k2 > 1:
        weights = averaged(near, k2, weights)
    return pairwise(weights, farthest, split)


def _rows(columns: np.ndarray, value: np.generic, width: int) -> sparse.csr_matrix:
    """`(n, width)` with `value` in `columns`, `(n, K)`; so many times where a column stands several times in a row."""
    count, k = columns.shape
    indptr = k * np.arange(count + 1)
    matrix = sparse.csr_matrix((np.full(count * k, value), columns.ravel(), indptr), shape=(count, width), copy=True)
    matrix.sum_duplicates()  # sorts in place, so `copy` is set
    return matrix


def averaged(nearest: np.ndarray, k2: int, weights: sparse.csr_matrix) -> sparse.csr_matrix:
    """V' of some images `(n, N)`, sorted indices, from their nearest `(n, K)` and V."""
    few = nearest[:, :k2]
    matrix = (_rows(few, np.float64(1 / few.shape[1]), weights.shape[1]) @ weights).tocsr()
    matrix.sort_indices()
    return matrix


def reciprocal(nearest: np.ndarray, k: int) -> sparse.csr_matrix:
    """R(i, k): positive numbers, ones where no image stands in a row twice, `(N, N)` int32, symmetric."""
    forward = _rows(nearest[:, :k], np.int32(1), len(nearest))
    return forward.multiply(forward.T.tocsr()).tocsr()


def expanded(close: sparse.csr_matrix, half: sparse.csr_matrix) -> sparse.csr_matrix:
    """R*(i): positive numbers, `(N, N)`, sorted indices; every row holds itself."""
    sizes = np.diff(half.indptr)
    parts = []
    for rows in blocks(close.shape[0], _ROWS):
        block = close[rows]
        # How many of the half's neighbours are in R(i): `half` is symmetric, a transpose isn't needed.
        shared = (block @ half).multiply(block).tocsr()
        shared.data = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.int32)
        parts.append(block + shared @ half)
    whole = sparse.vstack(parts, format="csr")
    whole.eliminate_zeros()
    whole.sort_indices()
    return whole


def normalised(neighbours: sparse.csr_matrix, weights: np.ndarray) -> sparse.csr_matrix:
    """V: weights of the neighbours, each row's sum 1."""
    indptr = neighbours.indptr
    weights /= np.repeat(np.add.reduceat(weights, indptr[:-1]), np.diff(indptr))
    return sparse.csr_matrix((weights, neighbours.indices, indptr), shape=neighbours.shape)


def pairwise(weights: sparse.csr_matrix, farthest: float, split: WorkSplit) -> sparse.csr_matrix:
    """d from V' (rows with sorted indices, none empty), each rank a share of its rows."""
    count, rank_rows = weights.shape[0], split.share(weights.shape[0])
    columns, values, pairs = [], [], np.zeros(count, dtype=np.int64)
    for rows, place, distance in _near(weights, rank_rows, farthest):
        columns.append((place % count).astype(np.int32))
        values.append(distance)
        pairs[rows] = np.bincount(place // count, minlength=rows.stop - rows.start)
        if pairs.sum() > MOST_PAIRS:  # too many already; the other ranks have to know
            break
    pairs = split.add(pairs)
    if (total := int(pairs.sum())) > MOST_PAIRS:
        raise ValueError(
            f"{count:,} images have {total:,} near pairs or more, too many to hold: have the features collapsed? If "
            "not, give a smaller `farthest`"
        )
    indptr = np.concatenate([[0], np.cumsum(pairs)])

    def together(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        whole: np.ndarray = np.zeros(total, dtype)
        np.concatenate(parts or [whole[:0]], out=whole[indptr[rank_rows.start] : indptr[rank_rows.stop]])
        parts.clear()  # one after the other, so that only one of them is held twice
        return split.add(whole)

    distances = sparse.csr_matrix(
        (together(values, np.float32), together(columns, np.int32), indptr), shape=weights.shape
    )
    distances.has_sorted_indices = True
    return distances


def _near(
    weights: sparse.csr_matrix, rank_rows: slice, farthest: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows of d, block by block: which, and of each pair that is near its place in the block's `(n, N)` and d."""
    count, by_column = weights.shape[0], weights.tocsc()
    degree = np.diff(by_column.indptr).astype(np.int64)
    terms = np.add.reduceat(degree[weights.indices], weights.indptr[:-1])
    for some in balanced(terms[rank_rows], max(1, _SUMS // count)):
        rows = slice(rank_rows.start + some.start, rank_rows.start + some.stop)
        sums = shared(weights[rows], by_column, degree)
        place = np.flatnonzero(sums)
        sums = sums[place]
        distance = np.maximum(1 - sums / (2 - sums), 0).astype(np.float32)
        # The sum over a row is 1 up to rounding.
        diagonal = np.arange(rows.stop - rows.start) * (count + 1) + rows.start
        distance[np.searchsorted(place, diagonal)] = 0
        near = (distance < 1) & (distance <= farthest)
        yield rows, place[near], distance[near]


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
