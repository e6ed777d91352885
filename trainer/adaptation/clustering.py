"""Clusters of unlabelled images, as pseudo-labels: k-means with PUL's selection, and DBSCAN on sparse distances."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse

from embae.datasets.sampling.keyed_random import generator

# Rows at a time where features are wanted in float64.
_ROWS = 4096


def kmeans(features: np.ndarray, clusters: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means (Lloyd's iterations from one k-means++ start, scikit-learn) in one thread.

    One thread, since several add up their parts of a centre in the order in which they end. The result is the same bit
    for bit however many the process has.

    Args:
        features: `(N, F)`, clustered in float32 as they are; PUL's code divides by the length only afterwards.
        clusters: K.
        seed: Of the start.

    Returns:
        Labels `(N,)` int64 in 0 … K − 1, and centres `(K, F)` float32. Where there are fewer than K different features,
        some labels do not occur.

    Raises:
        ValueError: Features are no finite matrix, or K is less than 1 or more than N.
    """
    # Only here: importing it takes a second.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    x = _matrix(features)
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters of {len(x)} images: ask for at least one, and at most as many as images")
    start = int(generator(seed, "k-means").integers(2**32))
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Said where features are fewer than clusters; also to be seen in the labels.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=1, random_state=start).fit(x)
    return found.labels_.astype(np.int64), found.cluster_centers_


def near_centres(
    features: np.ndarray, labels: np.ndarray, centres: np.ndarray, *, similarity: float, smallest: int = 1
) -> np.ndarray:
    """The images that PUL trains on (Fan et al. 2017, arXiv 1705.10444): those near their cluster's centre.

    The centre of a cluster becomes the feature of its image nearest to the mean (Euclidean, on the features as they
    are; the first at a tie). An image stays if the cosine of the angle between its feature and that one exceeds
    `similarity`; division by the length happens only for the cosine. The image at the centre always stays.

    The authors' code compares with the centres of all clusters and keeps an image near any, under the label of its own
    cluster. Here, as in the paper, its own centre counts.

    Args:
        features: `(N, F)`, those given to `kmeans`.
        labels: `(N,)` integers in 0 … K − 1; some may not occur.
        centres: `(K, F)`, the means.
        similarity: Cosine between −1 and 1; 0.85 in the paper.
        smallest: A cluster that keeps fewer images than this is left out.

    Returns:
        `(N,)` int64: clusters that remain, numbered from 0 without gaps in the order of their old labels; −1 for
        an image left out.

    Raises:
        ValueError: Shapes do not fit, or a label is none of 0 … K − 1.
    """
    x, labels, centres = _matrix(features), np.asarray(labels), np.asarray(centres)
    if labels.shape != x.shape[:1] or centres.ndim != 2 or centres.shape[1] != x.shape[1]:
        raise ValueError(f"features {x.shape}, labels {labels.shape} and centres {centres.shape} do not fit")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(centres):
        raise ValueError(f"labels must be integers from 0 to {len(centres) - 1}")
    distance = _rowwise(_squared, x, centres, labels)
    order = np.lexsort((distance, labels))  # stable: the lower index first at a tie
    present, first = np.unique(labels[order], return_index=True)
    nearest = np.zeros(len(centres), dtype=np.int64)
    nearest[present] = order[first]
    cosine = _rowwise(_cosine, x, x, nearest[labels])
    kept = cosine > similarity
    kept[nearest[present]] = True
    kept &= (np.bincount(labels[kept], minlength=len(centres)) >= smallest)[labels]
    chosen = np.full(len(x), -1, dtype=np.int64)
    chosen[kept] = np.unique(labels[kept], return_inverse=True)[1]
    return chosen


def dbscan(distances: sparse.csr_matrix, *, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN (Ester et al. 1996, scikit-learn) on sparse distances, those of `jaccard.jaccard_distances`.

    Args:
        distances: `(N, N)`, symmetric. A pair it doesn't hold is farther than `eps`, a zero that it holds is a
            distance of zero.
        eps: Largest distance of neighbours.
        min_samples: Neighbours of a core image, itself included.

    Returns:
        `(N,)` int64: clusters from 0 in the order of their first core image; −1 for an image in none.

    Raises:
        ValueError: Distances are not square, or below 0; eps is not above 0 or min_samples below 1.
    """
    from sklearn.cluster import DBSCAN

    # Neighbours only: scikit-learn copies what it gets several times.
    near = np.flatnonzero(distances.data <= eps)
    indptr = np.searchsorted(near, distances.indptr)
    graph = sparse.csr_matrix((distances.data[near], distances.indices[near], indptr), shape=distances.shape)
    if graph.shape[0] != graph.shape[1]:
        raise ValueError(f"distances must be (N, N), not {graph.shape}")
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph)
    return found.labels_.astype(np.int64)


def with_outliers(labels: np.ndarray) -> np.ndarray:
    """Every outlier, −1, as a cluster of its own, numbered after the others in the order of the images; `(N,)`."""
    found, alone = labels.copy(), labels < 0
    found[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    return found


def _matrix(features: np.ndarray) -> np.ndarray:
    """`(N, F)` float32."""
    x = np.ascontiguousarray(features, dtype=np.float32)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must be (N, F), not of shape {x.shape}")
    return x


def _rowwise(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, others: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """`measure` of each row of `x` and row `which` of `others`, in float64: `(N,)`."""
    measured = np.empty(len(x))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        measured[rows] = measure(x[rows].astype(np.float64), others[which[rows]].astype(np.float64))
    return measured


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nf,nf->n", a, b)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _dot(a - b, a - b)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 where one of them is a zero vector."""
    lengths = np.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / np.where(lengths > 0, lengths, 1)
