"""Clustering of the features of a target, Market-1501's training set by default; their extraction is not in it.

    python tests/benchmarks/bench_clustering.py [--images 13000] [--features 1280] [--clusters 700] [--ranks 1 2]
        [--only kmeans|jaccard|linkage|dense]

The features are made: people of 18 images on average, each one random direction with noise of twice its length, all
around one common direction as the features of a backbone are, seen by six cameras. k-means with PUL's selection (cosine
> 0.5 here), of the first rank; the Jaccard distance, which ranks share, and DBSCAN on it; the Jaccard distance by
camera, and average linkage on it; up to 13,000 images the Jaccard distance as SpCL and Cluster Contrast compute it, in
N × N matrices (the search by matmul in place of faiss). Seconds of a single run, those of a CPU (of the busiest rank,
all its threads) and on the clock, and the largest rank's peak memory (resident), features and libraries included, of
fresh processes that do only that. Ranks share the cores; set OMP_NUM_THREADS for one core.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from embae.trainer.clustering.average_linkage import average_linkage
from embae.trainer.clustering.camera_jaccard import camera_aware_distances
from embae.trainer.clustering.dbscan import dbscan
from embae.trainer.clustering.kmeans import kmeans, near_centres
from embae.trainer.retrieval.jaccard import jaccard_distances

PER_PERSON = 18
CAMERAS = 6
KINDS = ["kmeans", "jaccard", "linkage", "dense"]
# Above it the matrices of the dense form take more than 3 GB.
DENSE = 13_000


def made(images: int, dimensions: int) -> np.ndarray:
    """`(images, dimensions)` float32."""
    rng = np.random.default_rng(0)
    people = max(1, images // PER_PERSON)
    x = rng.standard_normal((people, dimensions), dtype=np.float32)[rng.integers(0, people, images)]
    for row in x:  # one by one: noise for all of them would show in the peak
        row += 2 * rng.standard_normal(dimensions, dtype=np.float32)
    x += 2 * rng.standard_normal(dimensions, dtype=np.float32)
    return x


def peak() -> float:
    """GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.process_time(), time.perf_counter()

    def cpu(self) -> float:
        return time.process_time() - self.began[0]

    def __str__(self) -> str:
        return f"{self.cpu():.1f} s of CPU, {time.perf_counter() - self.began[1]:.1f} s"


def said(labels: np.ndarray) -> str:
    return f"{labels.max() + 1:,} clusters, {np.mean(labels >= 0):.0%} of the images"


def time_kmeans(x: np.ndarray, clusters: int) -> None:
    clock = Clock()
    labels, centres = kmeans(x, clusters, seed=0)
    print(f"k-means, K = {clusters}: {clock}, peak {peak():.2f} GiB")
    clock = Clock()
    chosen = near_centres(x, labels, centres, similarity=0.5)
    print(f"  near centres: {clock}, {said(chosen)}")


def time_distances(x: np.ndarray, by_camera: bool) -> None:
    """One rank's part, and what the first one clusters by; the first one tells."""
    from embae.trainer.inference.embeddings import spread_over
    from embae.trainer.runtime.distributed import gather_objects, join, leave, on_first_rank

    world = join()
    cameras, split = np.random.default_rng(1).integers(0, CAMERAS, len(x)), spread_over(world)
    gather_objects(None)  # all have come
    clock = Clock()
    if by_camera:
        distances = camera_aware_distances(x, cameras, split=split)
    else:
        distances = jaccard_distances(x, farthest=0.6, split=split)
    parts = gather_objects((clock.cpu(), str(clock), peak()))

    def tell() -> None:
        print(f"Jaccard distances{' by camera' * by_camera}, {world.world_size} ranks of {split.threads} threads: "
              f"{max(parts)[1]}, peak {max(part[2] for part in parts):.2f} GiB, {distances.nnz / len(x):,.1f} pairs an "
              f"image up to {1.0 if by_camera else 0.6}")
        import sklearn.cluster  # noqa: F401  # takes a second
        clock = Clock()
        labels = average_linkage(distances, distance=0.8, smallest=2) if by_camera else dbscan(
            distances, eps=0.6, min_samples=4)
        print(f"  {'average linkage' if by_camera else 'DBSCAN'}: {clock}, peak {peak():.2f} GiB, {said(labels)}")

    on_first_rank(world, tell)
    leave()


def time_dense(x: np.ndarray) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from helpers.dense_jaccard import compute_jaccard_distance

    clock = Clock()
    compute_jaccard_distance(x, 30, 6, np.float32)
    print(f"Jaccard distances in N × N matrices: {clock}, peak {peak():.2f} GiB")


def launch(only: str, ranks: int) -> None:
    """Measures and prints in processes of its own."""
    with tempfile.TemporaryDirectory() as store:
        common = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                  "EMBAE_STORE": f"{store}/store"}
        command = [sys.executable, __file__, *sys.argv[1:], "--only", only, "--started"]
        workers = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                   for rank in range(ranks)]
        if any([worker.wait() for worker in workers]):
            sys.exit(1)


def main() -> None:
    """Each measurement after the other."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=13_000)
    options.add_argument("--features", type=int, default=1280)
    options.add_argument("--clusters", type=int, default=700)
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options.add_argument("--only", choices=KINDS)
    options.add_argument("--started", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if not given.started:
        print(f"{given.images:,} images, {given.features} features", flush=True)
        for only in [given.only] if given.only else KINDS:
            if only != "dense" or given.images <= DENSE:
                for ranks in given.ranks if only in ("jaccard", "linkage") else [1]:
                    launch(only, ranks)
        return
    x = made(given.images, given.features)
    if given.only == "kmeans":
        time_kmeans(x, given.clusters)
    elif given.only in ("jaccard", "linkage"):
        time_distances(x, given.only == "linkage")
    else:
        time_dense(x)


if __name__ == "__main__":
    main()
