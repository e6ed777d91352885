"""k-means, and the selection of images near their cluster's centre (PUL, Fan et al. 2017)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from embae.datasets.fields import Count, Fraction
from embae.datasets.sampling.keyed_random import generator
from embae.trainer.clustering.method import ClusteringMethod
from embae.trainer.retrieval.work_split import WorkSplit

# Rows converted to float64 at a time.
_ROWS = 4096


class KMeans(ClusteringMethod):
    """k-means; images stay whose features are near the centre of their cluster (Fan et al. 2017)."""

    advice: ClassVar[str] = "a lower similarity or smallest"

    clusters: Count
    similarity: Fraction = 0.85
    """Cosine that an image must exceed to stay."""
    smallest: Count = 2
    """Clusters with fewer images left are left out."""

    def labels(self, embeddings: np.ndarray, cameras: np.ndarray, *, seed: int, split: WorkSplit) -> np.ndarray:
        def labels() -> np.ndarray:
            clusters, centres = kmeans(embeddings, self.clusters, seed=seed)
            return near_centres(embeddings, clusters, centres, similarity=self.similarity, smallest=self.smallest)

        return split.on_first(labels)

    def cluster_count(self, images: int, cluster_size: int, least: int) -> int:
        return self.clusters

    def mistakes(self, images: int) -> list[str]:
        if self.clusters <= images:
            return []
        return [f"clusters: {self.clusters} of {images} images; expected at most as many as images"]


def kmeans(features: np.ndarray, clusters: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means (Lloyd's iterations from one k-means++ start, scikit-learn) in one thread.

    Several threads would add up their parts of a centre in the order in which they end. In one thread the result is the
    same bit for bit, for any number of threads of the process.

    Args:
        features: `(N, F)`, clustered in float32 as they are; PUL's code divides by the length only afterwards.
        clusters: K.
        seed: Seed of the start.

    Returns:
        Labels `(N,)` int64 in 0 … K − 1, and centres `(K, F)` float32. If there are fewer than K different features,
        some labels do not occur.

    Raises:
        ValueError: Features are not a finite matrix, or K is less than 1 or more than N.
    """
    from sklearn.cluster import KMeans as SklearnKMeans  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    x = _matrix(features)
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters of {len(x)} images: expected from one to as many as images")
    start = int(generator(seed, "k-means").integers(2**32))
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Raised if there are fewer different features than clusters, which the labels show too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clustering = SklearnKMeans(clusters, n_init=1, random_state=start).fit(x)
    return clustering.labels_.astype(np.int64), clustering.cluster_centers_


def near_centres(
    features: np.ndarray, labels: np.ndarray, centres: np.ndarray, *, similarity: float, smallest: int = 1
) -> np.ndarray:
    """The images that PUL trains on (Fan et al. 2017, arXiv 1705.10444): those near their cluster's centre.

    The centre of a cluster becomes the feature of its image nearest to the mean (Euclidean, on the features as they
    are; the first at a tie). An image stays if the cosine of the angle between its feature and that one exceeds
    `similarity`; division by the length happens only for the cosine. The image at the centre always stays.

    The authors' code compares an image with the centres of all clusters and keeps it if it is near any of them, under
    the label of its own cluster. Here, as in the paper, only the centre of its own cluster counts.

    Args:
        features: `(N, F)`, the input of `kmeans`.
        labels: `(N,)` integers in 0 … K − 1; some may not occur.
        centres: `(K, F)`, the means.
        similarity: Cosine between −1 and 1; 0.85 in the paper.
        smallest: A cluster with fewer images left than this is left out.

    Returns:
        `(N,)` int64: the remaining clusters, numbered from 0 without gaps in the order of their old labels; −1 for
        an image that is left out.

    Raises:
        ValueError: Shapes do not fit, or a label is not in 0 … K − 1.
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
    stays = _rowwise(_cosine, x, x, nearest[labels]) > similarity
    stays[nearest[present]] = True
    stays &= (np.bincount(labels[stays], minlength=len(centres)) >= smallest)[labels]
    selected = np.full(len(x), -1, dtype=np.int64)
    selected[stays] = np.unique(labels[stays], return_inverse=True)[1]
    return selected


def _matrix(features: np.ndarray) -> np.ndarray:
    """`(N, F)` float32."""
    x = np.ascontiguousarray(features, dtype=np.float32)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must be (N, F), not of shape {x.shape}")
    return x


def _rowwise(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, others: np.ndarray, partner: np.ndarray
) -> np.ndarray:
    """`measure` of each row i of `x` and row `partner[i]` of `others`, in float64: `(N,)`."""
    measured = np.empty(len(x))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        measured[rows] = measure(x[rows].astype(np.float64), others[partner[rows]].astype(np.float64))
    return measured


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nf,nf->n", a, b)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _dot(a - b, a - b)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows; 0 if one of them is a zero vector."""
    lengths = np.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / np.where(lengths > 0, lengths, 1)
