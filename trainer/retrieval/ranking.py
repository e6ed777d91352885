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

The gallery is taken a part at a time, and numbers of parts add up: no row of distances is ever whole, and ranks take a
share of the gallery each. Held are query and one part of the gallery in fixed point, a block of distances a thread, and
some numbers a positive. With D numbers an embedding, T threads and G positives of all queries that is at most
8 (Q + 2 P) D + 13 T 2^20 + 40 G bytes, P = min(N, 2^15, 2^25/D), whatever N is: 0.5 GB for 10,000 queries, 512-d, 16
threads and 30 positives a query. Pages of memory-mapped embeddings come on top where a system counts these.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embae.trainer.retrieval.fixed_point import blocks, check_finite, fixed_point
from embae.trainer.retrieval.scores import Labels, PerQuery, Scores
from embae.trainer.retrieval.work_split import WorkSplit

# Squared distances of unit vectors are rounded to this step: what is closer than 7e-4 is one point. It covers the noise
# of float32, TF32 and fp16 around a collapsed embedding, and is a millionth of the distance between unlike images.
STEP = 2.0**-20
# From so many positives on it is cheaper to sort the values of what is closer than the last of them than to compare the
# row with each. Measured on 16k float32 columns: equal at some 31 positives.
MANY_POSITIVES = 32
# Distances held per thread when the caller sets no chunk: 8 MiB in float64.
BLOCK = 2**20
# Gallery images at a time, and numbers of their embeddings: 256 MiB in float64.
_PART, _NUMBERS = 2**15, 2**25
# Gallery images whose distances to the queries of the same identities are taken at a time.
MATCHED_BLOCK = 128

Block = Callable[[np.ndarray], np.ndarray]
# Given gallery images, the distances `(C, n)` of any C queries to these n, each time in an array of its own. A distance
# is the same number whatever stands beside it.
Part = Callable[[np.ndarray], Block]


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
    part: int | None = None,
    split: WorkSplit | None = None,
) -> PerQuery:
    """Rank the gallery for every query by the Euclidean distance of the embeddings divided by their length.

    Distances are exact (see `fixed_point.py`), and their squares rounded to 2^-20, so that embeddings collapsed up to
    numerical noise tie as well. A zero vector stays zero.

    Args:
        query: `(Q, D)` raw embeddings; may be memory-mapped.
        gallery: `(N, D)` raw embeddings; may be memory-mapped. A rank reads its own share of them, and checks that.
        query_labels: Q labels.
        gallery_labels: N labels.
        chunk: Queries at a time; the default bounds the distances that a thread holds to 13 MiB.
        part: Gallery images at a time.
        split: The ranks, each with the same arguments; by default this process alone. Neither of the three changes
            the result, which is every rank's.

    Raises:
        ValueError: Shapes do not fit, or an embedding is NaN or infinite.
    """
    query, gallery, split = np.asanyarray(query), np.asanyarray(gallery), split or WorkSplit()
    check_embeddings(query, gallery, query_labels, gallery_labels, split.share(len(gallery)))
    part = part or min(_PART, max(1, _NUMBERS // max(1, query.shape[1])))
    return rank_parts(squared_distances(query, gallery), query_labels, gallery_labels, chunk, part, split)


def rank_distances(
    distances: np.ndarray,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    chunk: int | None = None,
    part: int | None = None,
    split: WorkSplit | None = None,
) -> PerQuery:
    """Rank the gallery for every query by given distances, whatever their scale; equal ones are ties.

    Args:
        distances: `(Q, N)`, left unchanged; may be memory-mapped. Infinity is a distance, NaN is not.
        query_labels: Q labels.
        gallery_labels: N labels.
        chunk, part, split: As for `rank_embeddings`.

    Raises:
        ValueError: Shapes do not fit, or a distance is NaN.
    """
    distances = np.asanyarray(distances)
    if distances.ndim != 2:
        raise ValueError(f"distances {distances.shape} must be (Q, N)")
    _check_lengths(len(distances), distances.shape[1], query_labels, gallery_labels)
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    split = split or WorkSplit()
    own = split.share(distances.shape[1])
    for rows in blocks(len(distances), BLOCK // max(1, own.stop - own.start)):
        some = distances[rows, own]
        if some.dtype.kind == "f" and (bad := np.isnan(some)).any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"the distance of query {rows.start + row} to gallery image {own.start + column} is NaN"
            )

    def of(images: np.ndarray) -> Block:
        low, high = images.min(), images.max() + 1
        if high - low > 4 * len(images):
            return lambda queries: distances[queries[:, None], images].astype(dtype, copy=False)
        # Measured: half the time of the other.
        return lambda queries: np.take(distances[queries, low:high], images - low, axis=1).astype(dtype, copy=False)

    return rank_parts(of, query_labels, gallery_labels, chunk, part or _PART, split)


def squared_distances(query: np.ndarray, gallery: np.ndarray) -> Part:
    """|q − g|² of unit vectors in whole steps of `STEP`, in float32; without |q|², which is one number for a query."""
    q = fixed_point(query)
    q *= -2 / STEP  # powers of two scale exactly

    def of(images: np.ndarray) -> Block:
        g = fixed_point(gallery[images])
        square = np.einsum("nd,nd->n", g, g) / STEP

        def block(queries: np.ndarray) -> np.ndarray:
            steps: np.ndarray = q[queries] @ g.T
            steps += square
            np.rint(steps, out=steps)
            return steps.astype(np.float32)  # whole numbers up to 3 · 2^20, which float32 holds at half the bytes

        return block

    return of


def rank_parts(
    distances: Part, query: Labels, gallery: Labels, chunk: int | None, part: int, split: WorkSplit
) -> PerQuery:
    """Rank the gallery for every query, given distances by part; the other arguments as for `rank_embeddings`."""
    own = split.share(len(gallery))
    with ThreadPoolExecutor(split.threads) as pool:
        # Numpy lets go of the interpreter while it computes, so threads share one copy of everything.
        people = _People(gallery, np.arange(len(gallery)))
        positives = _positives(distances, query, gallery, people, own, split, pool)
        counts = np.zeros((2, len(positives.distance)), dtype=np.int64)
        for images in blocks(own.stop - own.start, part):
            _count_part(
                distances, np.arange(own.start + images.start, own.start + images.stop), query, gallery, positives,
                counts, chunk, pool
            )
    here, everywhere = split.add(counts)
    ranks = positives.place + everywhere
    first, ap, ap_rectangle, inp = _average(ranks, positives, len(query))
    first_nd, ap_nd, ap_nd_rectangle, _ = _average(ranks - here, positives, len(query))
    return PerQuery(first, ap, ap_rectangle, inp, first_nd, ap_nd, ap_nd_rectangle)


class _People:
    """Where the images of each identity lie among some of the gallery's."""

    def __init__(self, labels: Labels, images: np.ndarray) -> None:
        known = np.flatnonzero(labels.identified[images])
        pid = labels.pid[images[known]]
        order = np.argsort(pid, kind="stable")
        self.places, self.pid = known[order], pid[order]

    def of(self, query: Labels) -> tuple[np.ndarray, np.ndarray]:
        """Where in `places` those of each query's identity start and stop: two `(Q,)`."""
        start, stop = (np.searchsorted(self.pid, query.pid, side=side) for side in ("left", "right"))
        return start, np.where(query.identified, stop, start)


class _Positives:
    """The distances of all positives, those of a query from `start` on and ascending.

    Attributes:
        queries: `(M,)`, the queries that have a positive.
        start, count: `(M,)`, where theirs are, and how many.
        distance: `(G,)`.
        place: `(G,)`, i of r_i: 1, 2, … within a query.
    """

    def __init__(self, query: np.ndarray, distance: np.ndarray) -> None:
        self.distance = distance[np.lexsort((distance, query))]
        self.queries, self.count = np.unique(query, return_counts=True)
        self.start = np.cumsum(self.count) - self.count
        self.place = np.arange(1, len(distance) + 1) - np.repeat(self.start, self.count)


def _positives(
    distances: Part, query: Labels, gallery: Labels, people: _People, own: slice, split: WorkSplit,
    pool: ThreadPoolExecutor,
) -> _Positives:
    """Distances of the queries to the gallery images of their identities on other cameras."""
    start, stop = people.of(query)
    # A place for each pair of a query and an image of its identity, this rank's and the others'.
    count = stop - start
    place = np.cumsum(count) - count
    number = np.repeat(np.arange(len(query)), count)
    images = people.places[np.arange(len(number)) - np.repeat(place - start, count)]
    found = np.zeros(len(number))
    # Few images at a time, in the order of pids, with the queries of these pids.
    by_pid = np.flatnonzero(query.identified)
    by_pid = by_pid[np.argsort(query.pid[by_pid], kind="stable")]
    sorted_pid = query.pid[by_pid]
    mine = np.flatnonzero((people.places >= own.start) & (people.places < own.stop))
    mine = mine[np.isin(people.pid[mine], sorted_pid)]

    def measure(some: slice) -> None:
        which = mine[some]
        pid = people.pid[which]
        first, last = np.searchsorted(sorted_pid, pid[0], "left"), np.searchsorted(sorted_pid, pid[-1], "right")
        queries = by_pid[first:last]
        row, column = np.nonzero(query.pid[queries][:, None] == pid)
        at = place[queries[row]] + which[column] - start[queries[row]]
        found[at] = distances(people.places[which])(queries)[row, column]

    list(pool.map(measure, blocks(len(mine), MATCHED_BLOCK)))
    found = split.add(found)
    others = gallery.camid[images] != query.camid[number]
    return _Positives(number[others], found[others])


def _count_part(
    distances: Part, images: np.ndarray, query: Labels, gallery: Labels, positives: _Positives, counts: np.ndarray,
    chunk: int | None, pool: ThreadPoolExecutor,
) -> None:
    """Adds to `counts` `(2, G)` the negatives among some images that are as close as each positive: on the query's
    camera, and everywhere."""
    # Without junk, and ordered by camera, so that a camera is a slice.
    images = images[~gallery.junk[images]]
    images = images[np.argsort(gallery.camid[images], kind="stable")]
    if not len(images) or not len(positives.queries):
        return
    camid, people = gallery.camid[images], _People(gallery, images)
    low, high = np.searchsorted(camid, query.camid, "left"), np.searchsorted(camid, query.camid, "right")
    start, stop = people.of(query)
    block = distances(images)

    def count(some: slice) -> None:
        rows = block(positives.queries[some])
        closest = positives.distance.astype(rows.dtype, copy=False)  # as they were
        for number, row in zip(range(some.start, some.stop), rows, strict=True):
            q = positives.queries[number]
            row[people.places[start[q]:stop[q]]] = np.nan  # not negatives: NaN is ≤ nothing
            at = slice(positives.start[number], positives.start[number] + positives.count[number])
            counts[:, at] += _count(row, closest[at], slice(low[q], high[q]))

    list(pool.map(count, blocks(len(positives.queries), chunk or BLOCK // len(images))))


def _count(row: np.ndarray, positives: np.ndarray, camera: slice) -> np.ndarray:
    """How many of `row[camera]` and of `row` are ≤ each of the sorted `positives` `(G,)`: `(2, G)`."""
    if len(positives) >= MANY_POSITIVES:
        near = (np.sort(part[part <= positives[-1]]) for part in (row[camera], row))
        return np.stack([part.searchsorted(positives, "right") for part in near])
    found = np.empty((2, len(positives)), dtype=np.int64)
    closer = np.empty(len(row), dtype=bool)
    for i, distance in enumerate(positives):
        np.less_equal(row, distance, out=closer)
        found[0, i], found[1, i] = np.count_nonzero(closer[camera]), np.count_nonzero(closer)
    return found


def _average(r: np.ndarray, positives: _Positives, queries: int) -> tuple[np.ndarray, ...]:
    """First rank, trapezoid AP, rectangle AP and INP, each `(queries,)`, from the ranks of the positives `(G,)`."""
    first = np.zeros(queries, dtype=np.int64)
    ap, ap_rectangle, inp = np.full((3, queries), np.nan)
    if len(r):
        numbers, starts, count, i = positives.queries, positives.start, positives.count, positives.place
        precision = i / r
        before = np.where(r == 1, 1.0, (i - 1) / np.maximum(r - 1, 1))
        first[numbers] = r[starts]
        ap[numbers] = np.add.reduceat((precision + before) / 2, starts) / count
        ap_rectangle[numbers] = np.add.reduceat(precision, starts) / count
        inp[numbers] = precision[starts + count - 1]
    return first, ap, ap_rectangle, inp


def check_embeddings(query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels,
                     own: slice) -> None:
    """Refuses embeddings that do not go together, and those of the query or of a share of the gallery not finite.

    Raises:
        ValueError: So.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {query.shape} and gallery {gallery.shape} must be (Q, D) and (N, D)")
    _check_lengths(len(query), len(gallery), query_labels, gallery_labels)
    check_finite(query, "the embedding of query image {} is")
    # Junk is checked with the rest, though it is never compared: a NaN means that the model is broken.
    check_finite(gallery[own], "the embedding of gallery image {} is", own.start)


def _check_lengths(queries: int, images: int, query_labels: Labels, gallery_labels: Labels) -> None:
    for name, found, labels in (("query", queries, query_labels), ("gallery", images, gallery_labels)):
        if found != len(labels):
            raise ValueError(f"{found} {name} images and {len(labels)} {name} labels")
