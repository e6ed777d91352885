"""Average query expansion (Chum et al. 2007): a query becomes the mean of itself and the images nearest to it.

    q' = (q + g_1 + … + g_n) / (1 + n)        all of length 1, g_i the n images of the gallery that are nearest to q

The nearest images are those of plain ranking: exact distances rounded to 2^-20, equal ones in the gallery's order. No
label affects them: images of all cameras count, including the query's, as in a search for an unknown person. Only junk
is left out, as everywhere in scoring. Of Q queries, N images and D numbers it uses 4 (Q + 1) D bytes and blocks of a
fixed size, and takes Q N D products, which ranks share.
"""

from __future__ import annotations

import numpy as np

from embae.trainer.retrieval.fixed_point import blocks, fixed_point
from embae.trainer.retrieval.neighbours import nearest_of
from embae.trainer.retrieval.ranking import STEP
from embae.trainer.retrieval.work_split import WorkSplit

# Numbers of neighbours in memory at a time: 16 MiB in float64.
_NUMBERS = 2**21
# Queries whose neighbours are searched at a time.
_QUERIES = 4096


def expanded_queries(query: np.ndarray, gallery: np.ndarray, junk: np.ndarray, count: int,
                     split: WorkSplit | None = None) -> np.ndarray:
    """Expands queries: `(Q, D)` embeddings to rank a gallery by, of the same type.

    Args:
        query: `(Q, D)` raw embeddings, finite; may be memory-mapped.
        gallery: `(N, D)` raw embeddings, finite; may be memory-mapped.
        junk: `(N,)` bool, images that are left out.
        count: n, the number of nearest images; if there are fewer, all of them are used.
        split: The ranks, each with the same arguments; each gets the same result, which they do not change.
    """
    split, images = split or WorkSplit(), _GalleryImages(gallery, np.flatnonzero(~junk))
    expanded, share = np.zeros(query.shape, query.dtype), split.share(len(query))
    for block in blocks(share.stop - share.start, _QUERIES):
        rows = np.arange(share.start + block.start, share.start + block.stop)
        near = nearest_of(fixed_point(query[rows]), images, count, step=STEP, threads=split.threads)
        for part in blocks(len(rows), _NUMBERS // ((count + 1) * query.shape[1])):
            expanded[rows[part]] = mean_with_neighbours(query[rows[part]], gallery[images.numbers[near[part]]])
    return split.add(expanded)


def mean_with_neighbours(query: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The means of queries `(Q, D)` and the neighbours of each `(Q, n, D)`, all divided by their length: `(Q, D)`."""
    embeddings = np.concatenate([query[:, None], neighbours], axis=1)
    unit = fixed_point(embeddings.reshape(-1, embeddings.shape[2])).reshape(embeddings.shape)  # sums of these are exact
    return unit.mean(1).astype(query.dtype)


class _GalleryImages:
    """Some images of a gallery as fixed-point vectors, which are converted when they are read."""

    def __init__(self, gallery: np.ndarray, numbers: np.ndarray) -> None:
        self._gallery, self.numbers = gallery, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return fixed_point(self._gallery[self.numbers[rows]])
