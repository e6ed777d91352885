"""Average query expansion (Chum et al. 2007): a query becomes the mean of itself and the images nearest to it.

    q' = (q + g_1 + … + g_n) / (1 + n)        all of length 1, g_i the n images of the gallery that are nearest to q

What is nearest is plain ranking's: exact distances rounded to 2^-20, equal ones in the gallery's order. No label has a
say in it: images count from whatever camera they are, the query's own too, as in a search for someone unknown. Junk
alone takes no part, as nowhere in scoring. Of Q queries, N images and D numbers it holds 4 (Q + 1) D bytes and blocks
of a set size, and takes Q N D products, which ranks share.
"""

from __future__ import annotations

import numpy as np

from embae.trainer.retrieval.fixed_point import blocks, fixed_point
from embae.trainer.retrieval.neighbours import nearest_of
from embae.trainer.retrieval.ranking import STEP
from embae.trainer.retrieval.work_split import WorkSplit

# Numbers of neighbours held at a time: 16 MiB in float64.
_NUMBERS = 2**21
# Queries at a time whose neighbours are looked for.
_QUERIES = 4096


def expanded_queries(query: np.ndarray, gallery: np.ndarray, junk: np.ndarray, count: int,
                     split: WorkSplit | None = None) -> np.ndarray:
    """Queries to rank a gallery by in place of those given: `(Q, D)`, of their type.

    Args:
        query: `(Q, D)` raw embeddings, finite; may be memory-mapped.
        gallery: `(N, D)` raw embeddings, finite; may be memory-mapped.
        junk: `(N,)` bool, images that take no part.
        count: n, of nearest images; all there are where it is more.
        split: The ranks, each with the same arguments; they do not change the result, which is every rank's.
    """
    split, kept = split or WorkSplit(), _Kept(gallery, np.flatnonzero(~junk))
    found, own = np.zeros(query.shape, query.dtype), split.share(len(query))
    for some in blocks(own.stop - own.start, _QUERIES):
        rows = np.arange(own.start + some.start, own.start + some.stop)
        near = nearest_of(fixed_point(query[rows]), kept, count, step=STEP, threads=split.threads)
        for part in blocks(len(rows), _NUMBERS // ((count + 1) * query.shape[1])):
            found[rows[part]] = expanded(query[rows[part]], gallery[kept.images[near[part]]])
    return split.add(found)


def expanded(query: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The means of queries `(Q, D)` and of the neighbours of each `(Q, n, D)`, all of length 1: `(Q, D)`."""
    every = np.concatenate([query[:, None], neighbours], axis=1)
    unit = fixed_point(every.reshape(-1, every.shape[2])).reshape(every.shape)  # whose sums are exact
    return unit.mean(1).astype(query.dtype)


class _Kept:
    """Some images of a gallery as fixed-point vectors, converted where they are asked for."""

    def __init__(self, gallery: np.ndarray, images: np.ndarray) -> None:
        self._gallery, self.images = gallery, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return fixed_point(self._gallery[self.images[rows]])
