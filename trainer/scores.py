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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from embae.datasets.records import ROLES

# Squared distances of unit vectors are rounded to this step: what is closer than 7e-4 is one point. It covers the noise
# of float32, TF32 and fp16 around a collapsed embedding, and is a millionth of the distance between unlike images.
_STEP = 2.0**-20
# From so many positives on it is cheaper to sort the values of what is closer than the last of them than to compare the
# row with each. Measured on 16k float32 columns: equal at some 31 positives.
_MANY = 32
# Distances held per thread when the caller sets no chunk: 8 MiB in float64.
_BLOCK = 2**20

_KEYS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mAP": "mAP",
    "mAP_rectangle": "mAP (rectangle)",
    "mINP": "mINP",
    "rank1_nd": "Rank-1-nd",
    "mAP_nd": "mAP-nd",
    "mAP_nd_rectangle": "mAP-nd (rectangle)",
}


@dataclass(frozen=True)
class Labels:
    """What the metric knows about N images; made by `Labels.of`.

    Attributes:
        pid: `(N,)` int64, meaningless where `known` is false.
        camid: `(N,)` int64.
        known: `(N,)` bool, a person whose identity is known: the only images that can match.
        junk: `(N,)` bool.
    """

    pid: np.ndarray
    camid: np.ndarray
    known: np.ndarray
    junk: np.ndarray

    @classmethod
    def of(cls, pid: Iterable[int | None], camid: Iterable[int], role: Iterable[str] | None = None) -> Labels:
        """Labels from the columns of an index.

        Args:
            pid: `(N,)`, None where not known: such an image matches nothing.
            camid: `(N,)`.
            role: `(N,)` of `person`, `distractor`, `junk`; None if all are persons.

        Raises:
            ValueError: Lengths differ, a pid or camid is no integer, or a role is none of the three.
        """
        pid = list(pid)
        known = np.array([one is not None for one in pid], dtype=bool)
        pids, camids = _integers([0 if one is None else one for one in pid], "pid"), _integers(list(camid), "camid")
        roles = np.array(["person"] * len(pids) if role is None else list(role), dtype=np.str_)
        if not len(pids) == len(camids) == len(roles):
            raise ValueError(f"{len(pids)} pids, {len(camids)} camids and {len(roles)} roles: one of each per image")
        if strange := set(roles.tolist()) - set(ROLES):
            raise ValueError(f"unknown role {min(strange)!r}; roles are {', '.join(ROLES)}")
        return cls(pids, camids, known & (roles == "person"), roles == "junk")

    def __len__(self) -> int:
        return len(self.pid)


@dataclass(frozen=True)
class Scores:
    """Means over the queries that have a positive, each between 0 and 1, and how many queries there were.

    Attributes:
        queries: All queries, those without a positive included.
        unmatched: Queries without a positive; in no mean.
    """

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mAP_rectangle: float
    mINP: float
    rank1_nd: float
    mAP_nd: float
    mAP_nd_rectangle: float
    queries: int
    unmatched: int

    def to_dict(self) -> dict[str, float | int]:
        """The scores under the names people use, for JSON; stable.

        Keys: `Rank-1`, `Rank-5`, `Rank-10`, `mAP` (trapezoid), `mAP (rectangle)`, `mINP`, `Rank-1-nd`, `mAP-nd`
        (trapezoid), `mAP-nd (rectangle)`, `queries`, `unmatched`.
        """
        return {_KEYS.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class PerQuery:
    """Results of each query; parts from several ranks go together with `concatenate`.

    Attributes:
        first, first_nd: `(Q,)` int64, the rank r_1 of the first positive from 1; 0 for a query without positives.
        ap, ap_rectangle, inp, ap_nd, ap_nd_rectangle: `(Q,)` float64, NaN for a query without positives.
    """

    first: np.ndarray
    ap: np.ndarray
    ap_rectangle: np.ndarray
    inp: np.ndarray
    first_nd: np.ndarray
    ap_nd: np.ndarray
    ap_nd_rectangle: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence[PerQuery]) -> PerQuery:
        """The queries of `parts`, in that order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def values(self) -> dict[str, np.ndarray]:
        """`(Q,)` float64 under every score key of `Scores.to_dict`, NaN without positives; for `interval`."""

        def hit(first: np.ndarray, k: int) -> np.ndarray:
            return np.where(first > 0, first <= k, np.nan)

        columns = [
            *(hit(self.first, 1), hit(self.first, 5), hit(self.first, 10), self.ap, self.ap_rectangle, self.inp),
            *(hit(self.first_nd, 1), self.ap_nd, self.ap_nd_rectangle),
        ]
        return dict(zip(_KEYS.values(), columns, strict=True))

    def scores(self) -> Scores:
        """The means.

        Raises:
            ValueError: No query has a positive, so there is no mean.
        """
        matched = self.first > 0
        if not matched.any():
            raise ValueError(
                f"none of {len(matched)} queries has an image of its identity on another camera of the gallery; "
                "are query and gallery of one dataset, and are their pids and camids known?"
            )
        means = {key: float(value[matched].mean()) for key, value in self.values().items()}
        named = {name: means[key] for name, key in _KEYS.items()}
        return Scores(**named, queries=len(matched), unmatched=int(np.count_nonzero(~matched)))


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


def interval(values: np.ndarray, query_labels: Labels, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, by bootstrap over identities.

    Queries of one identity are not independent: identities are drawn with replacement, each with all of its queries.

    Args:
        values: `(Q,)` of `PerQuery.values`; NaN (a query without positives) is left out.
        query_labels: Q labels.
        seed: Of the draws.
        resamples: Number of draws.

    Raises:
        ValueError: Lengths differ, or every value is NaN.
    """
    if len(values) != len(query_labels):
        raise ValueError(f"{len(values)} values for {len(query_labels)} queries")
    kept = ~np.isnan(values)
    if not kept.any():
        raise ValueError("no query has a positive: nothing to resample")
    _, person = np.unique(query_labels.pid[kept], return_inverse=True)
    total, count = np.bincount(person, weights=values[kept]), np.bincount(person)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(count), size=len(count)) for _ in range(resamples))
    low, high = np.percentile([total[draw].sum() / count[draw].sum() for draw in draws], [2.5, 97.5])
    return float(low), float(high)


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


def _integers(values: list[int], name: str) -> np.ndarray:
    """`(N,)` int64."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} must be one integer per image, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _check_lengths(queries: int, images: int, query_labels: Labels, gallery_labels: Labels) -> None:
    for name, found, labels in (("query", queries, query_labels), ("gallery", images, gallery_labels)):
        if found != len(labels):
            raise ValueError(f"{found} {name} images and {len(labels)} {name} labels")
