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

Neighbour lists, V and V' are sparse; J is taken of some queries and a part of the gallery at a time, by columns of V',
where the ranking asks for it (see `ranking.py`). Of N images together, V takes some 12 bytes for each of their some 30
numbers and the lists 4 (k1 + 1) bytes an image: half a GB for a million; while V is made it is about three times that.
The search for neighbours takes N² D products, and ranks share it.

d is rounded to 2^-20 as in plain ranking, so that a collapsed embedding doesn't score; ties go to the image itself,
then to queries, then to the lower index. Junk takes no part. A zero vector is taken to be at distance 2 from all others
where neighbours are looked for.
"""

from __future__ import annotations

import numpy as np

from embae.trainer.retrieval.fixed_point import fixed_point
from embae.trainer.retrieval.jaccard import averaged, balanced, expanded, normalised, reciprocal, shared
from embae.trainer.retrieval.neighbours import nearest, similarities
from embae.trainer.retrieval.ranking import STEP, Block, Part, check_embeddings, rank_parts, squared_distances
from embae.trainer.retrieval.scores import Labels, PerQuery
from embae.trainer.retrieval.work_split import WorkSplit

# Gallery images at a time in the ranking.
_PART = 2**14


def rank_again(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    chunk: int | None = None,
    part: int | None = None,
    split: WorkSplit | None = None,
) -> PerQuery:
    """Rank the gallery for every query by re-ranked distances.

    Args:
        query: `(Q, D)` raw embeddings; may be memory-mapped.
        gallery: `(N, D)` raw embeddings; may be memory-mapped.
        query_labels: Q labels.
        gallery_labels: N labels; only `junk` has a say in the distances.
        k1: Nearest images, besides itself, in which reciprocal neighbours are looked for.
        k2: Nearest images, itself included, whose rows are averaged; 1 for no averaging.
        weight: λ, of the original distance.
        chunk, part, split: As for `rank_embeddings`; none of them changes the result.

    Raises:
        ValueError: Shapes do not fit, an embedding is NaN or infinite, k1 or k2 is less than 1, or λ not in 0 … 1.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise ValueError(f"k1 = {k1} and k2 = {k2} must be at least 1, λ = {weight} from 0 to 1")
    query, gallery, split = np.asanyarray(query), np.asanyarray(gallery), split or WorkSplit()
    check_embeddings(query, gallery, query_labels, gallery_labels, split.share(len(gallery)))
    kept = np.flatnonzero(~gallery_labels.junk)
    distances = reranked_distances(query, gallery, kept, k1=k1, k2=k2, weight=weight, split=split)
    return rank_parts(distances, query_labels, gallery_labels, chunk, part or _PART, split)


def reranked_distances(
    query: np.ndarray, gallery: np.ndarray, kept: np.ndarray, *, k1: int, k2: int, weight: float, split: WorkSplit
) -> Part:
    """Re-ranked distances of the queries to those images of the gallery that are `kept`, by part, in float64."""
    x, queries = _Together(query, gallery, kept), len(query)
    near, farthest = nearest(x, max(k1 + 1, k2), step=STEP, split=split)
    farthest[farthest <= 0] = 1  # all images are one
    neighbours = expanded(reciprocal(near, k1 + 1), reciprocal(near, round(k1 / 2) + 1))
    d = np.rint((2 - 2 * similarities(x, neighbours, split)) / STEP) * STEP
    d /= np.repeat(farthest, np.diff(neighbours.indptr))
    v = normalised(neighbours, np.exp(-d))
    near = near[:, :k2].copy()
    of_query = averaged(near[:queries], k2, v)
    row = np.full(len(gallery), -1)
    row[kept] = queries + np.arange(len(kept))
    plain, unit = squared_distances(query, gallery), fixed_point(query)
    square, scale = np.einsum("nd,nd->n", unit, unit), weight / farthest[:queries]

    def of(images: np.ndarray) -> Block:
        original = plain(images)
        by_column = averaged(near[row[images]], k2, v).tocsc()
        degree = np.diff(by_column.indptr).astype(np.int64)

        def block(some: np.ndarray) -> np.ndarray:
            ones = of_query[some]
            terms = np.add.reduceat(degree[ones.indices], ones.indptr[:-1])
            found = original(some).astype(np.float64)
            found *= STEP
            found += square[some, None]
            found *= scale[some, None]
            for rows in balanced(terms, len(some)):
                m = shared(ones[rows], by_column, degree).reshape(-1, len(images))
                found[rows] += (1 - weight) * (1 - m / (2 - m))
            return found

        return block

    return of


class _Together:
    """Query and gallery as one array of fixed-point vectors, converted where they are asked for."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray, kept: np.ndarray) -> None:
        self._query, self._gallery, self._kept = query, gallery, kept

    def __len__(self) -> int:
        return len(self._query) + len(self._kept)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        which = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        found = np.empty((len(which), self._query.shape[1]), dtype=self._gallery.dtype)
        of_query = which < len(self._query)
        found[of_query] = self._query[which[of_query]]
        found[~of_query] = self._gallery[self._kept[which[~of_query] - len(self._query)]]
        return fixed_point(found)
