"""CMC, mAP and mINP of a query set against a gallery, and their -nd forms, by counting instead of sorting.

The Market-1501 protocol (Zheng et al. 2015; arXiv 1807.10591 §5.1). For a query of identity i on camera c, the gallery
images of i on c are ignored, those of i on other cameras are the positives, and all others (camera c included) are
negatives. Junk is ignored, and a distractor is negative for every query; the role decides this, never the pid. The -nd
scores also ignore every gallery image of camera c. A query without positives is left out of the means and counted.

With the distances d_1 ≤ … ≤ d_G of the positives, positive i ranks at r_i = i + #{negatives with d ≤ d_i}: a negative
at the same distance ranks first, so that a collapsed embedding ranks last. The scores need no other number, hence no
full sort of the gallery::

    Rank-k            share of queries with r_1 ≤ k
    mAP               trapezoid AP = (1/G) Σ [i/r_i + (i−1)/(r_i−1)] / 2, second term 1 where r_i = 1 (Market-1501's
                      own code, PUL, arXiv 1807.10591)
    mAP (rectangle)   AP = (1/G) Σ i/r_i (torchreid, fast-reid and most papers since)
    mINP              G/r_G (Ye et al. 2021)

The gallery is processed in parts, whose counts add up: no row of distances is ever complete, and each rank processes a
share of the gallery. Memory contains the queries and one part of the gallery in fixed point, a block of distances per
thread, and some numbers per positive. With D numbers in an embedding, T threads and G positives of all queries that is
at most 8 (Q + 2 P) D + 13 T 2^20 + 40 G bytes, P = min(N, 2^15, 2^25/D), whatever N is: 0.5 GB for 10,000 queries, 512
numbers, 16 threads and 30 positives per query. Pages of memory-mapped embeddings are added on systems that count them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from embae.trainer.retrieval.fixed_point import blocks, check_finite, fixed_point
from embae.trainer.retrieval.scores import Labels, PerQuery
from embae.trainer.retrieval.work_split import WorkSplit

# Squared distances of unit vectors are rounded to this step: points closer than 7e-4 are one point. It covers the noise
# of float32, TF32 and fp16 around a collapsed embedding, and is a millionth of the distance between unlike images.
STEP = 2.0**-20
# From this number of positives on, sorting the distances up to that of the last positive is cheaper than comparing the
# row with each positive. Measured on 16k float32 columns: equal at about 31 positives.
MANY_POSITIVES = 32
# Distances in memory per thread if the caller sets no chunk: 8 MiB in float64.
BLOCK = 2**20
# Gallery images at a time, and numbers of their embeddings: 256 MiB in float64.
_PART, _NUMBERS = 2**15, 2**25
# Gallery images whose distances to the queries of the same identities are computed at a time.
MATCHED_BLOCK = 128

Block = Callable[[np.ndarray], np.ndarray]
"""Distances `(C, n)` of any C queries to n gallery images, each time in a new array. A distance is the same number
whatever other distances are computed with it."""
Part = Callable[[np.ndarray], Block]
"""Gallery images to the block of distances to them."""


@dataclass(frozen=True)
class RankingWork:
    """How a ranking is computed; nothing of this changes its result.

    Attributes:
        split: The ranks, each with the same arguments; by default this process alone.
        chunk: Queries at a time; the default bounds the distances in the memory of a thread to 13 MiB.
        part: Gallery images at a time; the default depends on the kind of ranking.
    """

    split: WorkSplit = field(default_factory=WorkSplit)
    chunk: int | None = None
    part: int | None = None


def rank_embeddings(query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels,
                    work: RankingWork | None = None) -> PerQuery:
    """Ranks the gallery for every query by the Euclidean distance of the embeddings divided by their length.

    Distances are exact (see `fixed_point.py`), and their squares are rounded to 2^-20, so that embeddings collapsed
    up to numerical noise tie as well. A zero vector stays zero.

    Args:
        query: `(Q, D)` raw embeddings; may be memory-mapped.
        gallery: `(N, D)` raw embeddings; may be memory-mapped. A rank reads and checks its own share of them.
        query_labels: Q labels.
        gallery_labels: N labels.
        work: How the ranking is computed.

    Returns:
        The result of every query, on every rank.

    Raises:
        ValueError: Shapes do not fit, or an embedding is NaN or infinite.
    """
    query, gallery, work = np.asanyarray(query), np.asanyarray(gallery), work or RankingWork()
    check_embeddings(query, gallery, query_labels, gallery_labels, work.split.share(len(gallery)))
    part = work.part or min(_PART, max(1, _NUMBERS // max(1, query.shape[1])))
    return rank_parts(squared_distances(query, gallery), query_labels, gallery_labels, replace(work, part=part))


def rank_distances(distances: np.ndarray, query_labels: Labels, gallery_labels: Labels,
                   work: RankingWork | None = None) -> PerQuery:
    """Ranks the gallery for every query by given distances, whatever their scale; equal distances are ties.

    Args:
        distances: `(Q, N)`, left unchanged; may be memory-mapped. Infinity is a distance, NaN is not.
        query_labels: Q labels.
        gallery_labels: N labels.
        work: How the ranking is computed.

    Raises:
        ValueError: Shapes do not fit, or a distance is NaN.
    """
    distances, work = np.asanyarray(distances), work or RankingWork()
    if distances.ndim != 2:
        raise ValueError(f"distances {distances.shape} must be (Q, N)")
    _check_lengths(len(distances), distances.shape[1], query_labels, gallery_labels)
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    share = work.split.share(distances.shape[1])
    for rows in blocks(len(distances), BLOCK // max(1, share.stop - share.start)):
        block = distances[rows, share]
        if block.dtype.kind == "f" and (nan := np.isnan(block)).any():
            row, column = np.argwhere(nan)[0]
            raise ValueError(
                f"the distance of query {rows.start + row} to gallery image {share.start + column} is NaN"
            )

    def to_images(images: np.ndarray) -> Block:
        low, high = images.min(), images.max() + 1
        if high - low > 4 * len(images):
            return lambda queries: distances[queries[:, None], images].astype(dtype, copy=False)
        # Measured: half the time of the line above.
        return lambda queries: np.take(distances[queries, low:high], images - low, axis=1).astype(dtype, copy=False)

    return rank_parts(to_images, query_labels, gallery_labels, work)


def squared_distances(query: np.ndarray, gallery: np.ndarray) -> Part:
    """|q − g|² of unit vectors in whole steps of `STEP`, in float32; without |q|², which is one number per query."""
    q = fixed_point(query)
    q *= -2 / STEP  # powers of two scale exactly

    def to_images(images: np.ndarray) -> Block:
        g = fixed_point(gallery[images])
        square = np.einsum("nd,nd->n", g, g) / STEP

        def block(queries: np.ndarray) -> np.ndarray:
            steps: np.ndarray = q[queries] @ g.T
            steps += square
            np.rint(steps, out=steps)
            return steps.astype(np.float32)  # whole numbers up to 3 · 2^20, which float32 stores in half the bytes

        return block

    return to_images


def rank_parts(distances: Part, query: Labels, gallery: Labels, work: RankingWork) -> PerQuery:
    """Ranks the gallery for every query, given distances to parts of the gallery."""
    share = work.split.share(len(gallery))
    with ThreadPoolExecutor(work.split.threads) as pool:
        # numpy releases the interpreter's lock while it computes, so threads share one copy of all arrays.
        ranking = _Ranking(distances, query, gallery, work, pool)
        positives = ranking.positives()
        counts = np.zeros((2, len(positives.distance)), dtype=np.int64)
        for images in blocks(share.stop - share.start, work.part or _PART):
            ranking.count(np.arange(share.start + images.start, share.start + images.stop), positives, counts)
    on_camera, everywhere = work.split.add(counts)
    ranks = positives.place + everywhere
    first, ap, ap_rectangle, inp = _average(ranks, positives, len(query))
    first_nd, ap_nd, ap_nd_rectangle, _ = _average(ranks - on_camera, positives, len(query))
    return PerQuery(first, ap, ap_rectangle, inp, first_nd, ap_nd, ap_nd_rectangle)


class _People:
    """Where the images of each identity are among some images of the gallery."""

    def __init__(self, labels: Labels, images: np.ndarray) -> None:
        identified = np.flatnonzero(labels.identified[images])
        pid = labels.pid[images[identified]]
        order = np.argsort(pid, kind="stable")
        self.places, self.pid = identified[order], pid[order]

    def of(self, query: Labels) -> tuple[np.ndarray, np.ndarray]:
        """Where in `places` the images of each query's identity start and stop: two `(Q,)`."""
        start, stop = (np.searchsorted(self.pid, query.pid, side=side) for side in ("left", "right"))
        return start, np.where(query.identified, stop, start)


class _Positives:
    """The distances of all positives; those of a query are adjacent and ascending.

    Attributes:
        queries: `(M,)`, the queries that have a positive.
        start, count: `(M,)`, where their positives start, and how many there are.
        distance: `(G,)`.
        place: `(G,)`, i of r_i: 1, 2, … within a query.
    """

    def __init__(self, query: np.ndarray, distance: np.ndarray) -> None:
        self.distance = distance[np.lexsort((distance, query))]
        self.queries, self.count = np.unique(query, return_counts=True)
        self.start = np.cumsum(self.count) - self.count
        self.place = np.arange(1, len(distance) + 1) - np.repeat(self.start, self.count)


@dataclass(frozen=True)
class _Ranking:
    """A ranking of the gallery for every query, of which this rank computes its share."""

    distances: Part
    query: Labels
    gallery: Labels
    work: RankingWork
    pool: ThreadPoolExecutor

    def positives(self) -> _Positives:
        """Distances of the queries to the gallery images of their identities on other cameras."""
        query, gallery = self.query, self.gallery
        people = _People(gallery, np.arange(len(gallery)))
        start, stop = people.of(query)
        # A place for each pair of a query and an image of its identity, for the images of all ranks.
        count = stop - start
        place = np.cumsum(count) - count
        query_of_pair = np.repeat(np.arange(len(query)), count)
        images = people.places[np.arange(len(query_of_pair)) - np.repeat(place - start, count)]
        pair_distances = np.zeros(len(query_of_pair))
        # Few images at a time, in the order of pids, with the queries of these pids.
        by_pid = np.flatnonzero(query.identified)
        by_pid = by_pid[np.argsort(query.pid[by_pid], kind="stable")]
        sorted_pid = query.pid[by_pid]
        share = self.work.split.share(len(gallery))
        in_share = np.flatnonzero((people.places >= share.start) & (people.places < share.stop))
        in_share = in_share[np.isin(people.pid[in_share], sorted_pid)]

        def measure(block: slice) -> None:
            members = in_share[block]
            pid = people.pid[members]
            first, last = np.searchsorted(sorted_pid, pid[0], "left"), np.searchsorted(sorted_pid, pid[-1], "right")
            queries = by_pid[first:last]
            row, column = np.nonzero(query.pid[queries][:, None] == pid)
            pairs = place[queries[row]] + members[column] - start[queries[row]]
            pair_distances[pairs] = self.distances(people.places[members])(queries)[row, column]

        list(self.pool.map(measure, blocks(len(in_share), MATCHED_BLOCK)))
        pair_distances = self.work.split.add(pair_distances)
        other_camera = gallery.camid[images] != query.camid[query_of_pair]
        return _Positives(query_of_pair[other_camera], pair_distances[other_camera])

    def count(self, images: np.ndarray, positives: _Positives, counts: np.ndarray) -> None:
        """Adds to `counts` `(2, G)` the negatives among some images that are as close as each positive: on the query's
        camera, and on all cameras."""
        # Without junk, and sorted by camera, so that a camera is a slice.
        images = images[~self.gallery.junk[images]]
        images = images[np.argsort(self.gallery.camid[images], kind="stable")]
        if not len(images) or not len(positives.queries):
            return
        camid, people = self.gallery.camid[images], _People(self.gallery, images)
        low, high = (np.searchsorted(camid, self.query.camid, side) for side in ("left", "right"))
        start, stop = people.of(self.query)
        block_distances = self.distances(images)

        def count(block: slice) -> None:
            rows = block_distances(positives.queries[block])
            closest = positives.distance.astype(rows.dtype, copy=False)  # the type that they were computed in
            for number, row in zip(range(block.start, block.stop), rows, strict=True):
                q = positives.queries[number]
                row[people.places[start[q]:stop[q]]] = np.nan  # not negatives: NaN is ≤ nothing
                at = slice(positives.start[number], positives.start[number] + positives.count[number])
                counts[:, at] += _count(row, closest[at], slice(low[q], high[q]))

        list(self.pool.map(count, blocks(len(positives.queries), self.work.chunk or BLOCK // len(images))))


def _count(row: np.ndarray, positives: np.ndarray, camera: slice) -> np.ndarray:
    """How many of `row[camera]` and of `row` are ≤ each of the sorted `positives` `(G,)`: `(2, G)`."""
    if len(positives) >= MANY_POSITIVES:
        near = (np.sort(part[part <= positives[-1]]) for part in (row[camera], row))
        return np.stack([part.searchsorted(positives, "right") for part in near])
    counts = np.empty((2, len(positives)), dtype=np.int64)
    closer = np.empty(len(row), dtype=bool)
    for i, distance in enumerate(positives):
        np.less_equal(row, distance, out=closer)
        counts[0, i], counts[1, i] = np.count_nonzero(closer[camera]), np.count_nonzero(closer)
    return counts


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
                     share: slice) -> None:
    """Checks the shapes of embeddings, and that those of the query and of a share of the gallery are finite.

    Raises:
        ValueError: Shapes do not fit, or an embedding is NaN or infinite.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {query.shape} and gallery {gallery.shape} must be (Q, D) and (N, D)")
    _check_lengths(len(query), len(gallery), query_labels, gallery_labels)
    check_finite(query, "the embedding of query image {} is")
    # Junk is checked too, although it is never compared: a NaN means that the model is broken.
    check_finite(gallery[share], "the embedding of gallery image {} is", share.start)


def _check_lengths(queries: int, images: int, query_labels: Labels, gallery_labels: Labels) -> None:
    for name, count, labels in (("query", queries, query_labels), ("gallery", images, gallery_labels)):
        if count != len(labels):
            raise ValueError(f"{count} {name} images and {len(labels)} {name} labels")
