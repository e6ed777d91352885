"""The images of a gallery that are nearest to an image, in exact order.

Distances are Euclidean between embeddings divided by their length, as in `ranking.py`: 0 for the same direction, 1.41
for unrelated ones, 2 at most. All of the gallery is compared, in one product with the memory-mapped file. Of 100,000
images with 128 numbers each that takes tens of milliseconds (`bench_search.py`), a third of what faiss's exact index
takes and far less than starting a command does, so there is no index to build, and none to be wrong.
"""

from __future__ import annotations

import numpy as np

from embae.trainer.deployment.vectors import Vectors
from embae.trainer.retrieval.expansion import mean_with_neighbours
from embae.trainer.retrieval.fixed_point import fixed_point
from embae.trainer.retrieval.ranking import STEP
from embae.trainer.retrieval.rerank import Reranking, reranked_distances
from embae.trainer.retrieval.work_split import WorkSplit

SHORTLIST = 1000
"""Nearest images among which re-ranking looks for reciprocal neighbours."""
_NOISE = 1e-5  # similarities in float32 are nearer to exact ones than that


class Search:
    """A gallery to search in; may be asked again and again.

    Args:
        gallery: The embeddings.
    """

    def __init__(self, gallery: Vectors):
        self._gallery = gallery
        lengths = [np.sqrt(np.einsum("nd,nd->n", part, part)) for part in gallery.parts]
        self._length = np.maximum(np.concatenate(lengths), np.float32(1e-30))

    def nearest(self, query: np.ndarray, count: int, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images by rising distance, equal ones in the gallery's order, and the distances: two `(n,)`, n ≤ count.

        Args:
            query: `(D,)`, an embedding.
            count: How many.
            left_out: `(N,)` bool, images to ignore.
        """
        unit = (query / max(float(np.linalg.norm(query)), 1e-30)).astype(np.float32)
        near = np.concatenate([part @ unit for part in self._gallery.parts]) / self._length
        near[left_out] = -np.inf
        count = min(count, int(np.count_nonzero(~left_out)))
        if not count:
            return np.empty(0, np.int64), np.empty(0)
        least = np.partition(near, len(near) - count)[len(near) - count]
        rows = np.flatnonzero(near >= least - _NOISE)  # all that may be among the nearest, compared exactly below
        rows = rows[~left_out[rows]]
        exact = fixed_point(self._gallery[rows]) @ fixed_point(query[None])[0]
        square = np.rint(np.maximum(2 - 2 * exact, 0) / STEP) * STEP
        order = np.lexsort((rows, square))[:count]
        return rows[order], np.sqrt(square[order])

    def expanded(self, query: np.ndarray, count: int, left_out: np.ndarray) -> np.ndarray:
        """A query expanded by its nearest images, as in scoring: see `expansion.py`.

        Args:
            query: `(D,)`, an embedding.
            count: How many images.
            left_out: `(N,)` bool, images to ignore.
        """
        rows, _ = self.nearest(query, count, left_out)
        return mean_with_neighbours(query[None], self._gallery[rows][None])[0]

    def reranked(self, query: np.ndarray, count: int, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest`, by k-reciprocal re-ranking (`rerank.py`) of the `SHORTLIST` nearest: distances from 0 to 1."""
        rows, _ = self.nearest(query, max(count, SHORTLIST), left_out)
        if not len(rows):
            return rows, np.empty(0)
        every = np.arange(len(rows))
        again = reranked_distances(query[None], self._gallery[rows], every, Reranking(), WorkSplit())
        distances = again(every)(np.array([0]))[0]
        order = np.argsort(distances, kind="stable")[:count]
        return rows[order], distances[order]
