"""Evaluation at Market-1501 size with random numbers, beside one numpy.argsort and beside torchreid.

    python tests/benchmarks/bench_scores.py [--runs 3] [--dimensions 128]

3,368 queries of 750 identities; 19,732 gallery images: 13,115 of these identities, 2,798 distractors, 3,819 junk; six
cameras. A line for each way, median over alternated runs:

* argsort: one `numpy.argsort(distances, axis=1)`, which is what any evaluation by sorting needs at least;
* score_distances: all scores, distances given, and its share of argsort's time;
* score: all scores from embeddings (no distance matrix);
* torchreid: its evaluation as pip installs it (``pip install --no-deps torchreid``; without its Cython part), distances
  given, Rank-k and rectangle mAP only; 500 queries, scaled to all of them.

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
from importlib.util import find_spec, module_from_spec, spec_from_file_location

import numpy as np

from embae.trainer.retrieval.ranking import rank_distances, rank_embeddings
from embae.trainer.retrieval.scores import Labels

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


def torchreid(distances: np.ndarray, query: Labels, gallery: Labels) -> float | None:
    """Seconds that torchreid's evaluation takes for all queries; None where it is not installed."""
    found = find_spec("torchreid")
    if not found or not found.submodule_search_locations:
        return None
    # The file alone: the package imports all that it has, and not all of that is there.
    spec = spec_from_file_location("rank", f"{found.submodule_search_locations[0]}/reid/metrics/rank.py")
    assert spec and spec.loader
    rank = module_from_spec(spec)
    spec.loader.exec_module(rank)
    kept = ~gallery.junk  # it leaves them out when it reads a dataset
    pid = np.where(gallery.identified, gallery.pid, 0)[kept]
    given = distances[:LOOPED, kept], query.pid[:LOOPED], pid, query.camid[:LOOPED], gallery.camid[kept]
    return timed(lambda: rank.eval_market1501(*given, max_rank=50)) * len(distances) / LOOPED


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def alone(what: str, dimensions: int) -> None:
    """Do one thing and print the peak resident memory of this process in MB."""
    q, g, query, gallery = data(dimensions)
    if what == "score":
        rank_embeddings(q, g, query, gallery).scores()
    else:
        distances = matrix(q, g)
        if what == "argsort":
            np.argsort(distances, axis=1)
        else:
            rank_distances(distances, query, gallery).scores()
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
        "score_distances": lambda: rank_distances(distances, query, gallery).scores(),
        "score": lambda: rank_embeddings(q, g, query, gallery).scores(),
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
    if peer := torchreid(distances, query, gallery):
        print(f"{'torchreid':16} {peer:7.2f} s, {peer / sorting:5.2f} × argsort, one run, scaled from {LOOPED} queries")
    else:
        print("torchreid is not installed")


if __name__ == "__main__":
    main()
