"""Pseudo-labels of embeddings, found by the clustering that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy import sparse

from embae.trainer.adaptation.camera_jaccard import camera_aware_distances
from embae.trainer.adaptation.clustering import dbscan, kmeans, near_centres, with_outliers
from embae.trainer.adaptation.linkage import average_linkage
from embae.trainer.errors import RunError
from embae.trainer.inference.embeddings import spread_over
from embae.trainer.recipe.adaptation import DBSCAN, Cluster, KMeans, Linkage
from embae.trainer.retrieval.jaccard import jaccard_distances
from embae.trainer.retrieval.work_split import WorkSplit
from embae.trainer.runtime.distributed import World, broadcast_object, on_first_rank


def cluster(embeddings: np.ndarray, cameras: np.ndarray, keys: Cluster, dataset: str, seed: int,
            world: World) -> np.ndarray:
    """A pseudo-label for each image, contiguous from 0, −1 for what is left out: `(N,)` int64.

    Ranks share Jaccard distances; k-means, and DBSCAN or linkage on what is near, are the first rank's. The same bit
    for bit on any number of them.

    Args:
        embeddings: `(N, Z)`, in an order that knows nothing of labels; may be memory-mapped.
        cameras: `(N,)`, the camera of each.
        keys: The algorithm.
        dataset: Whose images they are.
        seed: The run's.
        world: This rank; all have the same arguments.

    Raises:
        RunError: There are fewer images than clusters asked for, or the embeddings have collapsed.
    """
    with _told(dataset):
        distances = _distances(embeddings, cameras, keys, spread_over(world))

    def find() -> np.ndarray:
        with _told(dataset):
            if keys.kmeans:
                return _kmeans(embeddings, keys.kmeans, seed)
            if keys.dbscan:
                return _dbscan(distances, keys.dbscan)
            linkage = keys.linkage or Linkage()
            return average_linkage(distances, distance=linkage.distance, smallest=linkage.smallest)

    return broadcast_object(on_first_rank(world, find))


@contextmanager
def _told(dataset: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RunError(f"the images of {dataset} cannot be clustered so: {error}") from error


def _distances(
    embeddings: np.ndarray, cameras: np.ndarray, keys: Cluster, spread: WorkSplit
) -> sparse.csr_matrix | None:
    if some := keys.dbscan:
        return jaccard_distances(embeddings, k1=some.k1, k2=some.k2, farthest=some.eps, spread=spread)
    if linkage := keys.linkage:
        return camera_aware_distances(embeddings, cameras, own=linkage.own, others=linkage.others,
                                      average=linkage.average, spread=spread)
    return None


def _kmeans(embeddings: np.ndarray, keys: KMeans, seed: int) -> np.ndarray:
    labels, centres = kmeans(embeddings, keys.clusters, seed=seed)
    return near_centres(embeddings, labels, centres, similarity=keys.similarity, smallest=keys.smallest)


def _dbscan(distances: sparse.csr_matrix, keys: DBSCAN) -> np.ndarray:
    found = dbscan(distances, eps=keys.eps, min_samples=keys.min_samples)
    return with_outliers(found) if keys.outliers == "own" else found
