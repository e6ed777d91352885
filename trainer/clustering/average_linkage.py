"""Average linkage on sparse distances: compact clusters, where DBSCAN's grow along chains of near images.

Between two clusters counts the mean of all distances from one to the other (Sokal and Michener 1958). A pair of images
that the matrix doesn't hold is 1 apart, the largest Jaccard distance there is, so sums of 1 − d need only the pairs
held, and merging clusters is a product of sparse matrices. All pairs of clusters that are each other's nearest merge at
once: that is the same tree as one merge after the other, since merging never brings clusters nearer to a third one
than the nearer of the two was (Bruynooghe 1977).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def average_linkage(distances: sparse.csr_matrix, *, distance: float, smallest: int = 1) -> np.ndarray:
    """Clusters by average linkage.

    Args:
        distances: `(N, N)`, symmetric, from 0 to 1; a pair it doesn't hold is 1 apart.
        distance: Mean distance up to which clusters merge, below 1.
        smallest: Clusters of fewer images than this are left out.

    Returns:
        `(N,)` int64: clusters from 0 in the order of their first image; −1 for an image that is left out.

    Raises:
        ValueError: Distances are not square, or `distance` is not from 0 to below 1.
    """
    count = distances.shape[0]
    if distances.shape != (count, count):
        raise ValueError(f"distances must be (N, N), not {distances.shape}")
    if not 0 <= distance < 1:
        raise ValueError(f"distance is {distance}; expected at least 0 and less than 1")
    close = distances.astype(np.float64)
    close.data = 1 - close.data
    labels, sizes, close = np.arange(count), np.ones(count), _mirrored(close)
    while len(into := _merges(close, sizes, 1 - distance)):
        of = np.unique(into, return_inverse=True)[1]
        gather = sparse.csr_matrix((np.ones(len(of)), (np.arange(len(of)), of)))
        close = _mirrored(gather.T @ close @ gather)
        labels, sizes = of[labels], np.bincount(of, weights=sizes)
    in_cluster = (sizes >= smallest)[labels]
    numbered = np.full(count, -1, np.int64)
    first, cluster = np.unique(labels[in_cluster], return_index=True, return_inverse=True)[1:]
    numbered[in_cluster] = np.argsort(np.argsort(first))[cluster]
    return numbered


def _mirrored(close: sparse.spmatrix) -> sparse.csr_matrix:
    """Without its diagonal, and symmetric to the last bit, so that two clusters agree how near they are."""
    upper = sparse.triu(close, 1, format="csr")
    whole = (upper + upper.T).tocsr()
    whole.sort_indices()
    return whole


def _merges(close: sparse.csr_matrix, sizes: np.ndarray, least: float) -> np.ndarray:
    """The cluster that each one becomes part of, often itself: `(C,)`; `(0,)` where none merges.

    Args:
        close: `(C, C)`, sums of 1 − d.
        sizes: `(C,)` images.
        least: Mean of 1 − d from which on clusters merge.
    """
    row = np.repeat(np.arange(len(sizes)), np.diff(close.indptr))
    mean = close.data / (sizes[row] * sizes[close.indices])
    near = mean >= least
    row, column, mean = row[near], close.indices[near], mean[near]
    order = np.lexsort((column, -mean, row))  # at a tie the lower number: two of the nearest always choose each other
    row, column = row[order], column[order]
    begins = np.diff(row, prepend=-1) > 0
    best = np.full(len(sizes), -1)
    best[row[begins]] = column[begins]
    itself = np.arange(len(sizes))
    mutual = (best > itself) & (best[best] == itself)
    if not mutual.any():
        return itself[:0]
    into = itself.copy()
    into[best[mutual]] = itself[mutual]
    return into
