"""DBSCAN (Ester et al. 1996) on Jaccard distances of k-reciprocal neighbours (Zhong et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from embae.datasets.fields import Count, Fraction
from embae.trainer.clustering.method import ClusteringMethod
from embae.trainer.retrieval.work_split import WorkSplit

if TYPE_CHECKING:
    from scipy import sparse


class DBSCAN(ClusteringMethod):
    """DBSCAN on k-reciprocal Jaccard distances (Zhong et al. 2017)."""

    advice: ClassVar[str] = "a larger eps"

    eps: Fraction = 0.6
    min_samples: Count = 4
    k1: Count = 30
    """Number of nearest images among which neighbours are looked for. If it is far above the number of images of a
    person, people merge into one cluster and eps has to be smaller: of drawn people with 12 images each, 30 and 0.6
    gave 4 clusters, 30 and 0.3 gave 110."""
    k2: Count = 6
    outliers: Literal["drop", "own"] = "drop"
    """Images in no cluster are left out (``drop``), or each becomes a cluster (``own``; Ge et al. 2020, arXiv
    2006.02713).

    A pass takes each identity once with K images, and repeats images of an identity that has fewer: a cluster of one
    image fills K places of a batch with that image, augmented differently in each. It shows what its identity is
    unlike and almost nothing of what it is like, and counts as much as a cluster of a hundred: with 200 clusters and
    3,000 outliers, 94 of the 100 identities of a batch are single images, and a pass takes 16 times the steps. Take
    ``own`` if there are few outliers per cluster, or if the loss needs the whole target in its classes.
    """

    def labels(self, embeddings: np.ndarray, cameras: np.ndarray, *, seed: int, split: WorkSplit) -> np.ndarray:
        from embae.trainer.retrieval.jaccard import jaccard_distances

        distances = jaccard_distances(embeddings, k1=self.k1, k2=self.k2, farthest=self.eps, split=split)

        def labels() -> np.ndarray:
            clusters = dbscan(distances, eps=self.eps, min_samples=self.min_samples)
            return with_outliers(clusters) if self.outliers == "own" else clusters

        return split.on_first(labels)

    @property
    def smallest_cluster(self) -> int:
        return self.min_samples if self.outliers == "drop" else 1


def dbscan(distances: sparse.csr_matrix, *, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN (Ester et al. 1996, scikit-learn) on sparse distances, those of `jaccard.jaccard_distances`.

    Args:
        distances: `(N, N)`, symmetric. A pair without an entry is farther apart than `eps`; an entry of zero is a
            distance of zero.
        eps: Largest distance of neighbours.
        min_samples: Neighbours of a core image, the image itself included.

    Returns:
        `(N,)` int64: clusters from 0 in the order of their first core image; −1 for an image in no cluster.

    Raises:
        ValueError: Distances are not square or are below 0, eps is not above 0, or min_samples is below 1.
    """
    from scipy import sparse
    from sklearn.cluster import DBSCAN as SklearnDBSCAN

    # Pass on neighbours only: scikit-learn copies its input several times.
    near = np.flatnonzero(distances.data <= eps)
    indptr = np.searchsorted(near, distances.indptr)
    graph = sparse.csr_matrix((distances.data[near], distances.indices[near], indptr), shape=distances.shape)
    if graph.shape[0] != graph.shape[1]:
        raise ValueError(f"distances must be (N, N), not {graph.shape}")
    clustering = SklearnDBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph)
    return clustering.labels_.astype(np.int64)


def with_outliers(labels: np.ndarray) -> np.ndarray:
    """Labels `(N,)` in which each outlier, −1, is a cluster, numbered after the others in the order of the images."""
    numbered, outlier = labels.copy(), labels < 0
    numbered[outlier] = labels.max(initial=-1) + 1 + np.arange(outlier.sum())
    return numbered
