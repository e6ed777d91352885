"""Clustering of the features of a target, Market-1501's training set by default.

    python tests/benchmarks/bench_clustering.py [--images 13000] [--features 1280] [--clusters 700] [--only jaccard]

The features are made: people of 18 images on average, each one random direction with noise of twice its length, all
around one common direction as the features of a backbone are. k-means with PUL's selection (cosine > 0.5 here); the
Jaccard distance and DBSCAN on it. Seconds of a single run, and peak memory (resident) of a fresh process that does only
that, features included. Set OMP_NUM_THREADS for one core.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from embae.trainer.clustering import dbscan, kmeans, near_centres
from embae.trainer.jaccard import jaccard_distances

PER_PERSON = 18


def made(images: int, dimensions: int) -> np.ndarray:
    """`(images, dimensions)` float32."""
    rng = np.random.default_rng(0)
    people = max(1, images // PER_PERSON)
    x = rng.standard_normal((people, dimensions), dtype=np.float32)[rng.integers(0, people, images)]
    for row in x:  # one by one: noise for all of them would show in the peak
        row += 2 * rng.standard_normal(dimensions, dtype=np.float32)
    x += 2 * rng.standard_normal(dimensions, dtype=np.float32)
    return x


def peak() -> str:
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"  # Linux counts in KiB


def said(labels: np.ndarray) -> str:
    return f"{labels.max() + 1:,} clusters, {np.mean(labels >= 0):.0%} of the images"


def time_kmeans(x: np.ndarray, clusters: int) -> None:
    began = time.perf_counter()
    labels, centres = kmeans(x, clusters, seed=0)
    found = time.perf_counter()
    chosen = near_centres(x, labels, centres, similarity=0.5)
    print(f"k-means, K = {clusters}: {found - began:.1f} s, {peak()}")
    print(f"  near centres: {time.perf_counter() - found:.2f} s, {said(chosen)}")


def time_jaccard(x: np.ndarray) -> None:
    began = time.perf_counter()
    distances = jaccard_distances(x)
    seconds = time.perf_counter() - began
    print(f"Jaccard distances: {seconds:.1f} s, {peak()}, {distances.nnz / len(x):,.0f} pairs an image")
    began = time.perf_counter()
    labels = dbscan(distances, eps=0.6, min_samples=4)
    print(f"  DBSCAN: {time.perf_counter() - began:.1f} s, {peak()}, {said(labels)}")


def main() -> None:
    """Measures and prints, each in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=13_000)
    options.add_argument("--features", type=int, default=1280)
    options.add_argument("--clusters", type=int, default=700)
    options.add_argument("--only", choices=["kmeans", "jaccard"])
    given = options.parse_args()
    if given.only is None:
        print(f"{given.images:,} images, {given.features} features", flush=True)
        for only in ("kmeans", "jaccard"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", only], check=True)
        return
    x = made(given.images, given.features)
    if given.only == "kmeans":
        time_kmeans(x, given.clusters)
    else:
        time_jaccard(x)


if __name__ == "__main__":
    main()
