"""Evaluation at Market-1501 size with random numbers, beside one numpy.argsort and beside the peers' Python loop.

    python tests/benchmarks/bench_scores.py [--runs 3] [--dimensions 128]

3,368 queries of 750 identities; 19,732 gallery images: 13,115 of these identities, 2,798 distractors, 3,819 junk; six
cameras. A line for each way, median over alternated runs:

* argsort: one `numpy.argsort(distances, axis=1)`, which is what any evaluation by sorting needs at least;
* score_distances: all scores, distances given, and its share of argsort's time;
* score: all scores from embeddings (no distance matrix);
* python loop: the protocol as torchreid's Python fallback goes about it, an argsort and then a loop over the queries,
  Rank-k and rectangle mAP only. The loop runs over 500 queries and is scaled to all of them; the argsort is added.

Peak memory (resident) is that of a fresh process which does that one thing and includes what it is given.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from embae.trainer.ranking import score, score_distances
from embae.trainer.scores import Labels

QUERIES, PEOPLE, DISTRACTORS, JUNK, IDENTITIES, CAMERAS = 3368, 13115, 2798, 3819, 750, 6
LOOPED = 500


def data(dimensions: int) -> tuple[np.ndarray, np.ndarray, Labels, Labels]:
    """Random embeddings `(Q, D)` and `(N, D)` in float32, and labels."""
    rng = np.random.default_rng(0)
    gallery = PEOPLE + DISTRACTORS + JUNK
    role = np.array(["person"] * PEOPLE + ["distractor"] * DISTRACTORS + ["junk"] * JUNK)
    pid = np.where(role == "person", rng.integers(1, IDENTITIES + 1, gallery), np.where(role == "junk", -1, 0))
    mixed = rng.permutation(gallery)
    labels = (
        Labels.of(np.arange(QUERIES) % IDENTITIES + 1, rng.integers(1, CAMERAS + 1, QUERIES)),
        Labels.of(pid[mixed], rng.integers(1, CAMERAS + 1, gallery), role[mixed]),
    )
    q, g = (rng.standard_normal((count, dimensions), dtype=np.float32) for count in (QUERIES, gallery))
    return q, g, *labels


def matrix(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distances `(Q, N)` in float32, made in place so that the peak says nothing about making them."""
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    distances = q @ g.T
    distances *= -2
    distances += 2
    np.maximum(distances, 0, out=distances)
    return np.sqrt(distances, out=distances)


def python_loop(distances: np.ndarray, query: Labels, gallery: Labels) -> float:
    """Seconds for all queries of what the peers do without a compiler."""
    pid = np.where(gallery.known, gallery.pid, np.where(gallery.junk, -1, 0))
    began = time.perf_counter()
    order = np.argsort(distances, axis=1)
    sorting = time.perf_counter() - began
    began = time.perf_counter()
    matches = (pid[order[:LOOPED]] == query.pid[:LOOPED, None]).astype(np.int32)
    curves, precisions = [], []
    for i in range(LOOPED):
        ranked = order[i]
        keep = ~(((pid[ranked] == query.pid[i]) & (gallery.camid[ranked] == query.camid[i])) | (pid[ranked] == -1))
        hits = matches[i][keep]
        if not hits.any():
            continue
        found = hits.cumsum()
        curves.append(np.minimum(found, 1)[:50])
        running = [count / (rank + 1.0) for rank, count in enumerate(found)]
        precisions.append((np.asarray(running) * hits).sum() / hits.sum())
    return sorting + (time.perf_counter() - began) * len(distances) / LOOPED


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def alone(what: str, dimensions: int) -> None:
    """Do one thing and print the peak resident memory of this process in MB."""
    q, g, query, gallery = data(dimensions)
    if what == "score":
        score(q, g, query, gallery)
    else:
        distances = matrix(q, g)
        if what == "argsort":
            np.argsort(distances, axis=1)
        else:
            score_distances(distances, query, gallery)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", choices=["argsort", "score_distances", "score"], help="peak memory of one thing")
    parser.add_argument("--dimensions", type=int, default=128)
    options = parser.parse_args()
    if options.alone:
        return alone(options.alone, options.dimensions)
    ways = ("argsort", "score_distances", "score")
    again = [sys.executable, __file__, "--dimensions", str(options.dimensions), "--alone"]
    peaks = {way: float(subprocess.run([*again, way], check=True, capture_output=True).stdout) for way in ways}
    q, g, query, gallery = data(options.dimensions)
    distances = matrix(q, g)
    todo: dict[str, Callable[[], object]] = {
        "argsort": lambda: np.argsort(distances, axis=1),
        "score_distances": lambda: score_distances(distances, query, gallery),
        "score": lambda: score(q, g, query, gallery),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.runs):
        for way in ways:
            seconds[way].append(timed(todo[way]))
    sorting = statistics.median(seconds["argsort"])
    sizes = f"{len(q)} queries × {len(g)} gallery images, {options.dimensions}-d"
    print(f"{sizes}, median of {options.runs} alternated runs")
    for way in ways:
        median = statistics.median(seconds[way])
        spread = f"{min(seconds[way]):.2f}-{max(seconds[way]):.2f}"
        print(f"{way:16} {median:7.2f} s ({spread}), {median / sorting:5.2f} × argsort, peak {peaks[way]:5.0f} MB")
    loop = python_loop(distances, query, gallery)
    print(f"{'python loop':16} {loop:7.2f} s, {loop / sorting:5.2f} × argsort, one run, scaled from {LOOPED} queries")


if __name__ == "__main__":
    main()
