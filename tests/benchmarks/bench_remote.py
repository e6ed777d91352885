"""How long training waits for data that lies behind a slow web server, with and without a window of shards.

    python tests/benchmarks/bench_remote.py [--steps 120] [--step-ms 100] [--latency-ms 50] [--mb-per-s 4]

Synthetic images in real shards (16 identities, P=18, K=4), served whole from 127.0.0.1 with a latency before each
answer and a bandwidth that all answers share; the cache holds a tenth of the shards and is empty at first. DALI decodes
on the CPU. A training step is a sleep of fixed length: it stands for the GPU and takes no CPU time. A line for each:
share of the time that the consumer waits for its next batch, after the first one (whose seconds stand apart), and bytes
fetched in units of the dataset. Server, loader and consumer share one machine, so compare lines of one run only. A
window that the cache cannot hold twice is of little use.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import open_loader
from embae.datasets.readers.synthetic import list_records
from embae.datasets.remote.cache import Cache
from embae.datasets.remote.url import Url
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from helpers import web_server

SPEC, P, K, IMAGES = ImageSpec(128, 64), 18, 4, 4


def consume(index: Index, window: int | None, steps: int, step_s: float) -> tuple[float, float]:
    """Seconds to the first batch, and the share of the time after it that went in waiting."""
    sampler = PKSampler(View([index], "train"), PKOptions(P=P, K=K, window=window), seed=0, stage="bench")
    work = Work(sampler, SPEC, Augment(flip=True, crop=True), 0, "bench", 0, steps)
    began, waited = time.perf_counter(), 0.0
    opened = open_loader(work, loader="dali", device=torch.device("cpu"), threads=1)
    batches = iter(opened)
    next(batches)
    first = time.perf_counter() - began
    for _ in range(steps - 1):
        time.sleep(step_s)
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
    whole = time.perf_counter() - began - first
    opened.close()
    return first, waited / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--mb-per-s", type=float, default=4)
    parser.add_argument("--identities", type=int, default=960)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = [record for record in list_records("plaza", identities=2 * given.identities, cameras=2,
                                                   images_per_camera=2, height=144) if record.split == "train"]
        near = write_shards(
            "set",
            drawn,
            folder / "web",
            source={"reader": "synthetic"},
            options=ShardOptions(size=SPEC.margin, images_per_shard=16 * IMAGES),
        )
        tars = sum((folder / "web" / "set" / shard).stat().st_size for shard in near.shards)
        table = (folder / "web" / "set" / "index.arrow").stat().st_size
        print(f"{len(near):,} images, {len(near.shards)} shards of {tars / len(near.shards) / 1e6:.2f} MB; "
              f"{given.steps} steps of {given.step_ms:.0f} ms; {given.latency_ms:.0f} ms, {given.mb_per_s:g} MB/s")
        print(f"{'data':>22} {'first batch':>12} {'waiting':>8} {'fetched':>8}")
        for window in (None, 4):
            first, waiting = consume(near, window, given.steps, given.step_ms / 1e3)
            print(f"{f'folder, window {window}':>22} {first:10.1f} s {waiting:8.1%} {0:8.2f}")
        for window in (None, 4):
            with web_server.serve(folder / "web") as server:
                server.latency_s, server.bytes_per_s = given.latency_ms / 1e3, given.mb_per_s * 1e6
                cache = Cache(folder=folder / f"cache-{window}", gib=(table + tars / 10) / 2**30)
                index = Index.open(Url(server.url, cache) / "set")
                first, waiting = consume(index, window, given.steps, given.step_ms / 1e3)
                print(f"{f'http, window {window}':>22} {first:10.1f} s {waiting:8.1%} "
                      f"{(server.bytes - table) / tars:8.2f}", flush=True)


if __name__ == "__main__":
    main()
