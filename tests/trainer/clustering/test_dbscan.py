"""DBSCAN on sparse distances, against its authors' loop."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.people_features import people
from scipy import sparse

from embae.trainer.clustering.dbscan import dbscan, with_outliers
from embae.trainer.retrieval.jaccard import jaccard_distances


def grown(distances: np.ndarray, eps: float, min_samples: int) -> list[int]:
    """Ester et al. 1996: grow a cluster from every core image not yet in one."""
    near = [[j for j in range(len(distances)) if distances[i][j] <= eps] for i in range(len(distances))]
    labels, number = [-1] * len(distances), 0
    for i in range(len(distances)):
        if labels[i] >= 0 or len(near[i]) < min_samples:
            continue
        labels[i] = number
        border = [i]
        while border:
            one = border.pop()
            if len(near[one]) >= min_samples:
                fresh = [j for j in near[one] if labels[j] < 0]
                for j in fresh:
                    labels[j] = number
                border += fresh
        number += 1
    return labels


def filled(distances: sparse.csr_matrix) -> np.ndarray:
    """`(N, N)`, what is absent far away."""
    full = np.full(distances.shape, np.inf)
    pairs = distances.tocoo()
    full[pairs.row, pairs.col] = pairs.data
    return full


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("eps", "min_samples"), [(0.3, 4), (0.5, 4), (0.5, 1), (0.6, 9)])
def test_dbscan_grows_clusters(seed: int, eps: float, min_samples: int) -> None:
    x = people(seed, 150, 8, 12)
    if seed == 3:  # zero distances
        x[75:] = x[:75]
    distances = jaccard_distances(x, k1=10, k2=4)
    before = distances.copy()
    labels = dbscan(distances, eps=eps, min_samples=min_samples)
    assert labels.dtype == np.int64
    assert labels.tolist() == grown(filled(distances), eps, min_samples)
    assert all(np.array_equal(getattr(distances, a), getattr(before, a)) for a in ("data", "indices", "indptr"))


def test_zeros_that_are_held_are_distances() -> None:
    rows, columns = [0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 2, 3]
    distances = sparse.csr_matrix((np.zeros(6, np.float32), (rows, columns)), shape=(4, 4))
    assert dbscan(distances, eps=0.5, min_samples=2).tolist() == [0, 0, -1, -1]
    # The image itself counts, held or not.
    assert dbscan(sparse.csr_matrix((4, 4), dtype=np.float32), eps=0.5, min_samples=1).tolist() == [0, 1, 2, 3]


def test_identical_images_are_one_cluster() -> None:
    distances = jaccard_distances(np.full((50, 3), 0.3, np.float32))
    assert dbscan(distances, eps=0.5, min_samples=4).tolist() == [0] * 50


def test_images_that_have_nothing_in_common_are_outliers() -> None:
    distances = jaccard_distances(np.eye(12, dtype=np.float32), k1=1, k2=1)
    assert dbscan(distances, eps=0.5, min_samples=2).tolist() == [-1] * 12


def test_an_outlier_may_be_a_cluster_of_its_own() -> None:
    given = np.array([-1, 1, 0, -1, 1, -1])
    assert with_outliers(given).tolist() == [2, 1, 0, 3, 1, 4] and given[0] == -1
    assert with_outliers(np.array([-1, -1])).tolist() == [0, 1]
    assert with_outliers(np.array([0, 0])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("distances", "eps", "min_samples", "message"),
    [
        (sparse.csr_matrix((4, 5), dtype=np.float32), 0.5, 4, r"\(N, N\)"),
        (sparse.csr_matrix(-np.eye(4, dtype=np.float32)), 0.5, 4, "Negative"),
        (sparse.csr_matrix((4, 4), dtype=np.float32), 0.0, 4, "eps"),
        (sparse.csr_matrix((4, 4), dtype=np.float32), 0.5, 0, "min_samples"),
    ],
)
def test_dbscan_errors(distances: sparse.csr_matrix, eps: float, min_samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dbscan(distances, eps=eps, min_samples=min_samples)
