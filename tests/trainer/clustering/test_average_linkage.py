"""Average linkage against scipy's on dense distances."""

import numpy as np
import pytest
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from embae.trainer.clustering.average_linkage import average_linkage


def invented(count: int, seed: int) -> np.ndarray:
    """Symmetric distances of clumps and noise, many of them 1."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(count // 4, 3))
    points = centres[draw.integers(len(centres), size=count)] + 0.1 * draw.normal(size=(count, 3))
    found = np.minimum(np.linalg.norm(points[:, None] - points[None], axis=2), 1)
    return (found + found.T) / 2


@pytest.mark.parametrize("distance", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_scipys(seed: int, distance: float) -> None:
    dense = invented(80, seed)
    wanted = fcluster(linkage(squareform(dense, checks=False), "average"), distance, "distance")
    held = sparse.csr_matrix((dense[dense < 1], np.nonzero(dense < 1)), shape=dense.shape)
    found = average_linkage(held, distance=distance)
    assert len(np.unique(wanted)) == found.max() + 1
    assert np.array_equal(wanted[:, None] == wanted[None], found[:, None] == found[None])


def test_numbers_clusters_by_their_first_image_and_leaves_small_ones_out() -> None:
    dense = np.ones((7, 7))
    for group in ([1, 4, 6], [2, 3]):
        dense[np.ix_(group, group)] = 0.1
    held = sparse.csr_matrix((dense[dense < 1], np.nonzero(dense < 1)), shape=dense.shape)
    assert average_linkage(held, distance=0.5, smallest=2).tolist() == [-1, 0, 1, 1, 0, -1, 0]
    assert average_linkage(held, distance=0.5, smallest=3).tolist() == [-1, 0, -1, -1, 0, -1, 0]
    assert average_linkage(held, distance=0.5).tolist() == [0, 1, 2, 2, 1, 3, 1]


def test_ties_merge_and_end() -> None:
    dense = np.full((6, 6), 0.25)
    assert average_linkage(sparse.csr_matrix(dense), distance=0.25).tolist() == [0] * 6
    assert average_linkage(sparse.csr_matrix(dense), distance=0.2).tolist() == list(range(6))


def test_chains_do_not_grow() -> None:
    places = np.arange(20.0) * 0.3  # each near the next one alone
    dense = np.minimum(abs(places[:, None] - places), 1)
    held = sparse.csr_matrix((dense[dense < 1], np.nonzero(dense < 1)), shape=dense.shape)
    assert max(np.bincount(average_linkage(held, distance=0.5))) <= 4


@pytest.mark.parametrize("distance", [-0.1, 1.0])
def test_refuses_a_distance_that_merges_strangers(distance: float) -> None:
    with pytest.raises(ValueError, match="less than 1"):
        average_linkage(sparse.csr_matrix((2, 2)), distance=distance)
