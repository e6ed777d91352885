"""Evaluation of large galleries on one and more ranks, plain, re-ranked and expanded, with random numbers.

    python tests/benchmarks/bench_scale.py [--queries 10000] [--images 1000000] [--dimensions 128] [--ranks 1 2]
                                           [--rerank] [--expand 3]

Embeddings of people with 15 images each on six cameras, in memory-mapped files. Ranks are processes that exchange over
gloo. For each number of ranks: seconds of the slowest, the largest peak (resident) of one, and how much of that is
neither libraries nor pages of the files (which the kernel takes back when it needs them); the scores must be the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from embae.trainer.retrieval.ranking_options import RankingOptions

EACH, CAMERAS = 15, 6


def draw(folder: Path, queries: int, images: int, dimensions: int) -> None:
    """Query and gallery: people, and noise of more than their distance."""
    rng, people = np.random.default_rng(0), max(1, images // EACH)
    for name, count in (("query", queries), ("gallery", images)):
        pid = rng.integers(people, size=count)
        np.savez(folder / f"{name}.npz", pid=pid, camid=rng.integers(CAMERAS, size=count))
        out = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, dimensions))
        for start in range(0, count, 1024):
            some = pid[start:start + 1024]
            centres = np.stack([np.random.default_rng(1 + one).standard_normal(dimensions) for one in some])
            out[start:start + 1024] = centres + 1.5 * rng.standard_normal(centres.shape)
        out.flush()


def memory(key: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def work(folder: Path, refined: RankingOptions) -> None:
    """One rank."""
    import threading

    from embae.trainer.inference.embeddings import spread_over
    from embae.trainer.retrieval.scores import Labels
    from embae.trainer.runtime.distributed import join, leave

    world, known, embeddings = join(), [], []
    for name in ("query", "gallery"):
        columns = np.load(folder / f"{name}.npz")
        count = len(columns["pid"])
        known.append(Labels(columns["pid"], columns["camid"], np.ones(count, bool), np.zeros(count, bool)))
        embeddings.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    before, most, done = memory("RssAnon"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    found = refined.rank(*embeddings, *known, spread_over(world))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    print(seconds, memory("VmHWM"), most[0] - before, found.scores().rank1, found.scores().mAP, flush=True)
    leave()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("queries", 10_000), ("images", 1_000_000), ("dimensions", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rerank", action="store_true")
    parser.add_argument("--expand", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, RankingOptions(options.rerank, options.expand))
    with tempfile.TemporaryDirectory(prefix="embae-scale-") as name:
        folder = Path(name)
        draw(folder, options.queries, options.images, options.dimensions)
        said = RankingOptions(options.rerank, options.expand).suffix
        print(f"{options.queries:,} × {options.images:,} × {options.dimensions}{said}")
        for ranks in options.ranks:
            common = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            pipe = subprocess.PIPE
            common |= {"EMBAE_STORE": str(folder / f"store-{ranks}"), "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, __file__, "--work", name, f"--expand={options.expand}",
                       *["--rerank"] * options.rerank]
            workers = [
                subprocess.Popen(
                    command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=pipe, text=True
                )
                for rank in range(ranks)
            ]
            told = [worker.communicate()[0] for worker in workers]
            if any(worker.returncode for worker in workers):
                sys.exit("a rank failed")
            seconds, peak, own, *scores = np.array([line.split() for line in told], dtype=float).T
            assert all(len(set(score)) == 1 for score in scores)
            print(f"{ranks} ranks: {seconds.max():6.1f} s, peak {peak.max():5.0f} MB a rank, of which ranking "
                  f"{own.max():5.0f} MB; Rank-1 {scores[0][0]:.6f}, mAP {scores[1][0]:.12f}", flush=True)


if __name__ == "__main__":
    main()
