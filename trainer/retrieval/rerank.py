"""k-reciprocal re-ranking (Zhong et al. 2017, arXiv 1701.08398) in memory that grows with the gallery, not its square.

As in the authors' code `re_ranking`, over query and gallery together, with d_ij the squared Euclidean distance of unit
vectors and D_ij = d_ij / max_k d_ik, so each image's distances are divided by its largest::

    N(i, k)   the k images nearest to i, and i
    R(i, k)   the reciprocal ones: j of N(i, k) with i in N(j, k)
    R*(i)     R(i, k1), and R(j, k1/2) of each j of R(i, k1) of which more than two thirds are in R(i, k1)
    V_ij      exp(−D_ij) for j of R*(i), else 0; then rows divided by their sum
    V'_i      mean of V_j over i and the k2 − 1 nearest to it
    J_ij      1 − m / (2 − m) with m = Σ_k min(V'_ik, V'_jk)
    final     (1 − λ) J_ij + λ D_ij, of a query i and a gallery image j

Neighbour lists, V and V' are sparse; J is computed for some queries and a part of the gallery at a time, by columns of
V', when the ranking needs it (see `ranking.py`). Of N images together, V takes about 12 bytes for each of the about 30
numbers of an image, and the lists 4 (k1 + 1) bytes per image: half a GB for a million; while V is computed it is about
three times that. The search for neighbours takes N² D products, which ranks share.

d is rounded to 2^-20 as in plain ranking, so that a collapsed embedding does not score; ties go to the image itself,
then to queries, then to the lower index. Junk is left out. A zero vector is assumed to be at distance 2 from all others
when neighbours are searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from embae.trainer.retrieval.fixed_point import fixed_point
from embae.trainer.retrieval.jaccard import averaged, balanced, expanded, normalised, reciprocal, shared
from embae.trainer.retrieval.neighbours import nearest, similarities
from embae.trainer.retrieval.ranking import (
    STEP,
    Block,
    Part,
    RankingWork,
    check_embeddings,
    rank_parts,
    squared_distances,
)
from embae.trainer.retrieval.scores import Labels, PerQuery
from embae.trainer.retrieval.work_split import WorkSplit

# Gallery images at a time in the ranking.
_PART = 2**14


@dataclass(frozen=True)
class Reranking:
    """The settings of the authors.

    Attributes:
        k1: Nearest images, the image itself not counted, among which reciprocal neighbours are looked for.
        k2: Nearest images, the image itself included, whose rows are averaged; 1 for no averaging.
        weight: λ, the weight of the original distance.

    Raises:
        ValueError: k1 or k2 is less than 1, or λ is not between 0 and 1.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise ValueError(f"k1 = {self.k1} and k2 = {self.k2} must be at least 1, λ = {self.weight} from 0 to 1")


def rank_again(query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels,
               settings: Reranking | None = None, work: RankingWork | None = None) -> PerQuery:
    """Ranks the gallery for every query by re-ranked distances.

    Args:
        query: `(Q, D)` raw embeddings; may be memory-mapped.
        gallery: `(N, D)` raw embeddings; may be memory-mapped.
        query_labels: Q labels.
        gallery_labels: N labels; only `junk` affects the distances.
        settings: By default those of the authors.
        work: How the ranking is computed.

    Raises:
        ValueError: Shapes do not fit, or an embedding is NaN or infinite.
    """
    query, gallery, work = np.asanyarray(query), np.asanyarray(gallery), work or RankingWork()
    check_embeddings(query, gallery, query_labels, gallery_labels, work.split.share(len(gallery)))
    images = np.flatnonzero(~gallery_labels.junk)
    distances = reranked_distances(query, gallery, images, settings or Reranking(), work.split)
    return rank_parts(distances, query_labels, gallery_labels, replace(work, part=work.part or _PART))


def reranked_distances(query: np.ndarray, gallery: np.ndarray, images: np.ndarray, settings: Reranking,
                       split: WorkSplit) -> Part:
    """Re-ranked distances of the queries to parts of the gallery, in float64.

    Args:
        query: `(Q, D)`.
        gallery: `(N, D)`.
        images: The gallery images that take part in the ranking.
        settings: The settings.
        split: The ranks.
    """
    k1, k2, weight = settings.k1, settings.k2, settings.weight
    x, queries = _QueryAndGallery(query, gallery, images), len(query)
    near, farthest = nearest(x, max(k1 + 1, k2), step=STEP, split=split)
    farthest[farthest <= 0] = 1  # all images are one point
    neighbours = expanded(reciprocal(near, k1 + 1), reciprocal(near, round(k1 / 2) + 1))
    d = np.rint((2 - 2 * similarities(x, neighbours, split)) / STEP) * STEP
    d /= np.repeat(farthest, np.diff(neighbours.indptr))
    v = normalised(neighbours, np.exp(-d))
    near = near[:, :k2].copy()
    of_query = averaged(near[:queries], k2, v)
    row_of_image = np.full(len(gallery), -1)
    row_of_image[images] = queries + np.arange(len(images))
    plain, unit = squared_distances(query, gallery), fixed_point(query)
    square, scale = np.einsum("nd,nd->n", unit, unit), weight / farthest[:queries]

    def to_images(images: np.ndarray) -> Block:
        original = plain(images)
        by_column = averaged(near[row_of_image[images]], k2, v).tocsc()
        degree = np.diff(by_column.indptr).astype(np.int64)

        def block(chunk: np.ndarray) -> np.ndarray:
            weights = of_query[chunk]
            terms = np.add.reduceat(degree[weights.indices], weights.indptr[:-1])
            distances = original(chunk).astype(np.float64)
            distances *= STEP
            distances += square[chunk, None]
            distances *= scale[chunk, None]
            for rows in balanced(terms, len(chunk)):
                m = shared(weights[rows], by_column, degree).reshape(-1, len(images))
                distances[rows] += (1 - weight) * (1 - m / (2 - m))
            return distances

        return block

    return to_images


class _QueryAndGallery:
    """Query and gallery as one array of fixed-point vectors, which are converted when they are read."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray, images: np.ndarray) -> None:
        self._query, self._gallery, self._images = query, gallery, images

    def __len__(self) -> int:
        return len(self._query) + len(self._images)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        embeddings = np.empty((len(numbers), self._query.shape[1]), dtype=self._gallery.dtype)
        is_query = numbers < len(self._query)
        embeddings[is_query] = self._query[numbers[is_query]]
        embeddings[~is_query] = self._gallery[self._images[numbers[~is_query] - len(self._query)]]
        return fixed_point(embeddings)
