"""CMC, mAP and mINP of a query set against a gallery, and their -nd forms, by counting instead of sorting.

The Market-1501 protocol (Zheng et al. 2015; arXiv 1807.10591 §5.1). For a query of identity i and camera c the gallery
images of i on c are ignored, those of i on other cameras are the positives, all else (camera c included) is negative.
Junk is ignored, a distractor is negative for every query; the role says so, never the pid. The -nd scores also ignore
every gallery image of camera c. A query without positives is left out of the means and counted.

With d_1 ≤ … ≤ d_G the distances of the positives, positive i ranks at r_i = i + #{negatives with d ≤ d_i}: a negative
at the same distance comes first, so that a collapsed embedding ranks last. That number is all the scores need, hence
no full sort of the gallery::

    Rank-k            share of queries with r_1 ≤ k
    mAP               trapezoid AP = (1/G) Σ [i/r_i + (i−1)/(r_i−1)] / 2, second term 1 where r_i = 1 (Market-1501's
                      own code, PUL, arXiv 1807.10591)
    mAP (rectangle)   AP = (1/G) Σ i/r_i (torchreid, fast-reid and most papers since)
    mINP              G/r_G (Ye et al. 2021)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embae.trainer.scores import Labels, PerQuery, Scores

# Squared distances of unit vectors are rounded to this step: what is closer than 7e-4 is one point. It covers the noise
# of float32, TF32 and fp16 around a collapsed embedding, and is a millionth of the distance between unlike images.
_STEP = 2.0**-20
# From so many positives on it is cheaper to sort the values of what is closer than the last of them than to compare the
# row with each. Measured on 16k float32 columns: equal at some 31 positives.
_MANY = 32
# Distances held per thread when the caller sets no chunk: 8 MiB in float64.
_BLOCK = 2**20



def score(query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels) -> Scores:
    """Scores of embeddings `(Q, D)` and `(N, D)`; see `rank_embeddings`."""
    return rank_embeddings(query, gallery, query_labels, gallery_labels).scores()


def score_distances(distances: np.ndarray, query_labels: Labels, gallery_labels: Labels) -> Scores:
    """Scores of a distance matrix `(Q, N)`; see `rank_distances`."""
    return rank_distances(distances, query_labels, gallery_labels).scores()


def rank_embeddings(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    chunk: int | None = None,
    threads: int | None = None,
) -> PerQuery:
    """Rank the gallery for every query by the Euclidean distance of the embeddings divided by their length.

    A matmul gives equal rows unequal last bits, depending on their place and on the shape, so that equal embeddings
    would not tie. Hence components are rounded to multiples of 2^-26: products and all partial sums then fit a float64
    exactly, and a distance is the same in any chunk, order or BLAS. Squared distances are rounded to 2^-20, so that
    embeddings collapsed up to numerical noise tie as well. A zero vector stays zero.

    Args:
        query: `(Q, D)` raw embeddings.
        gallery: `(N, D)` raw embeddings.
        query_labels: Q labels.
        gallery_labels: N labels.
        chunk: Queries at a time; the default bounds the distances that a thread holds to some 20 MiB.
        threads: By default the CPUs of this process, at most 16. Neither changes the result.

    Raises:
        ValueError: Shapes do not fit, or an embedding is NaN or infinite.
    """
    query, gallery = np.asarray(query), np.asarray(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {query.shape} and gallery {gallery.shape} must be (Q, D) and (N, D)")
    _check_lengths(len(query), len(gallery), query_labels, gallery_labels)
    index = _Index(gallery_labels)
    # Junk is checked with the rest, though it is never compared: a NaN means that the model is broken.
    q, g = _fixed_point(query, "query"), _fixed_point(gallery, "gallery")[index.columns]
    # |q − g|² = |q|² − 2qg + |g|² without |q|², which is one number for a row; in steps: powers of two scale exactly.
    square = np.einsum("nd,nd->n", g, g) / _STEP
    q *= -2 / _STEP

    def block(start: int, stop: int) -> np.ndarray:
        steps: np.ndarray = q[start:stop] @ g.T
        steps += square
        np.rint(steps, out=steps)
        return steps.astype(np.float32)  # whole numbers up to 3 · 2^20, which float32 holds at half the bytes

    return _in_chunks(block, query_labels, index, chunk, threads)


def rank_distances(
    distances: np.ndarray,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    chunk: int | None = None,
    threads: int | None = None,
) -> PerQuery:
    """Rank the gallery for every query by given distances, whatever their scale; equal ones are ties.

    Args:
        distances: `(Q, N)`, left unchanged; may be memory-mapped. Infinity is a distance, NaN is not.
        query_labels: Q labels.
        gallery_labels: N labels.
        chunk, threads: As for `rank_embeddings`.

    Raises:
        ValueError: Shapes do not fit, or a distance is NaN.
    """
    distances = np.asarray(distances)
    if distances.ndim != 2:
        raise ValueError(f"distances {distances.shape} must be (Q, N)")
    _check_lengths(len(distances), distances.shape[1], query_labels, gallery_labels)
    index = _Index(gallery_labels)
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64

    def block(start: int, stop: int) -> np.ndarray:
        rows = distances[start:stop]
        if rows.dtype.kind == "f" and (bad := np.isnan(rows)).any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(f"the distance of query {start + row} to gallery image {column} is NaN")
        return np.take(rows, index.columns, axis=1).astype(dtype, copy=False)

    return _in_chunks(block, query_labels, index, chunk, threads)


class _Index:
    """The gallery without junk, its columns ordered by camera, so that a camera is a slice and an identity a list."""

    def __init__(self, labels: Labels) -> None:
        columns = np.flatnonzero(~labels.junk)
        self.columns = columns[np.argsort(labels.camid[columns], kind="stable")]
        self.camid = labels.camid[self.columns]
        known = np.flatnonzero(labels.known[self.columns])
        pid = labels.pid[self.columns[known]]
        order = np.argsort(pid, kind="stable")
        people, starts = np.unique(pid[order], return_index=True)
        # Not strict: without people, np.split still returns one empty part.
        self.people = dict(zip(people.tolist(), np.split(known[order], starts[1:]), strict=False))

    def camera(self, camid: int) -> slice:
        """The columns of a camera; empty if the gallery has none."""
        return slice(*np.searchsorted(self.camid, [camid, camid + 1]))


def _in_chunks(
    block: Callable[[int, int], np.ndarray], labels: Labels, index: _Index, chunk: int | None, threads: int | None
) -> PerQuery:
    """Rank `block(start, stop)`, the distances of these queries to the columns of `index`, chunk by chunk."""
    chunk = chunk or max(1, _BLOCK // max(1, len(index.columns)))
    threads = threads or min(16, len(os.sched_getaffinity(0)))
    starts = range(0, max(1, len(labels)), chunk)
    with ThreadPoolExecutor(threads) as pool:
        # Numpy lets go of the interpreter while it computes, so threads share one copy of everything.
        return PerQuery.concatenate(
            list(pool.map(lambda start: _rank(block(start, start + chunk), start, labels, index), starts))
        )


def _rank(rows: np.ndarray, start: int, labels: Labels, index: _Index) -> PerQuery:
    """Results of the queries from `start` on, given their distances `rows` `(C, N)`, which are overwritten."""
    numbers: list[int] = []
    ranks: list[np.ndarray] = []
    ranks_nd: list[np.ndarray] = []
    for number, row in enumerate(rows):
        query = start + number
        same = index.people.get(int(labels.pid[query])) if labels.known[query] else None
        if same is None:
            continue
        positives = np.sort(row[same[index.camid[same] != labels.camid[query]]])
        if len(positives) == 0:
            continue
        row[same] = np.nan  # not negatives: NaN is ≤ nothing
        here, everywhere = _count(row, positives, index.camera(int(labels.camid[query])))
        rank = np.arange(1, len(positives) + 1) + everywhere
        numbers.append(number)
        ranks.append(rank)
        ranks_nd.append(rank - here)
    first, ap, ap_rectangle, inp = _average(ranks, numbers, len(rows))
    first_nd, ap_nd, ap_nd_rectangle, _ = _average(ranks_nd, numbers, len(rows))
    return PerQuery(first, ap, ap_rectangle, inp, first_nd, ap_nd, ap_nd_rectangle)


def _count(row: np.ndarray, positives: np.ndarray, camera: slice) -> tuple[np.ndarray, np.ndarray]:
    """How many of `row[camera]` and of `row` are ≤ each of the sorted `positives` `(G,)`; two `(G,)`."""
    if len(positives) >= _MANY:
        here, everywhere = (np.sort(part[part <= positives[-1]]) for part in (row[camera], row))
        return here.searchsorted(positives, "right"), everywhere.searchsorted(positives, "right")
    here, everywhere = np.empty((2, len(positives)), dtype=np.int64)
    closer = np.empty(len(row), dtype=bool)
    for i, distance in enumerate(positives):
        np.less_equal(row, distance, out=closer)
        here[i], everywhere[i] = np.count_nonzero(closer[camera]), np.count_nonzero(closer)
    return here, everywhere


def _average(ranks: list[np.ndarray], numbers: list[int], queries: int) -> tuple[np.ndarray, ...]:
    """First rank, trapezoid AP, rectangle AP and INP, each `(queries,)`, from the ranks of queries `numbers`."""
    first = np.zeros(queries, dtype=np.int64)
    ap, ap_rectangle, inp = np.full((3, queries), np.nan)
    if numbers:
        count = np.array([len(one) for one in ranks])
        starts = np.cumsum(count) - count
        r = np.concatenate(ranks)
        i = np.arange(1, len(r) + 1) - np.repeat(starts, count)
        precision = i / r
        before = np.where(r == 1, 1.0, (i - 1) / np.maximum(r - 1, 1))
        first[numbers] = r[starts]
        ap[numbers] = np.add.reduceat((precision + before) / 2, starts) / count
        ap_rectangle[numbers] = np.add.reduceat(precision, starts) / count
        inp[numbers] = precision[starts + count - 1]
    return first, ap, ap_rectangle, inp


def _fixed_point(embeddings: np.ndarray, name: str) -> np.ndarray:
    """Unit vectors `(N, D)` with components rounded to 2^-26; a zero vector stays zero. A copy, in float64."""
    x = np.array(embeddings, dtype=np.float64, order="C")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(f"the embedding of {name} image {np.argmin(finite)} is not finite ({np.sum(~finite)} such)")
    # The largest component first: the square of a huge or tiny one would leave float64.
    largest = np.abs(x).max(axis=1, initial=0, keepdims=True)
    x /= np.where(largest > 0, largest, 1)
    x /= np.where(largest > 0, np.linalg.norm(x, axis=1, keepdims=True), 1)
    return np.rint(x * 2.0**26, out=x) * 2.0**-26


def _check_lengths(queries: int, images: int, query_labels: Labels, gallery_labels: Labels) -> None:
    for name, found, labels in (("query", queries, query_labels), ("gallery", images, gallery_labels)):
        if found != len(labels):
            raise ValueError(f"{found} {name} images and {len(labels)} {name} labels")
