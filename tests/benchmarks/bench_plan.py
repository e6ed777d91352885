"""The batch plan over 10 million images of a million identities, as one dataset, as 40, and over a tenth of them.

    python tests/benchmarks/bench_plan.py [--runs 3] [--steps 2000] [--images 10000000]

The index is real, its shards are holes of the right length (about 0.6 GB in a temporary folder, removed at the end).
P=18, K=4, about ten images an identity from six cameras. A line for each: seconds from nothing to the first batch of a
`PKSampler` (`Index.open`, `View`, sampler), by part; then milliseconds a batch, mean over the steps of each run, median
over runs: `plan` alone, with the labels and augmentation that a training step asks for, and through a window of four
shards. Beside it, what a plain sampler needs that makes a list of each identity's rows when it opens, and draws from
these in a Python loop. Then the memory of 1, 8 and 64 processes that have the plan of the 40 datasets open at once and
have planned 50 batches: what is a process's own, and the pages of the mapped indexes, which they share.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Queue, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.columns import Columns
from embae.datasets.index.writer import write_index
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.view import View

P, K, CAMERAS, PER_IDENTITY, PER_SHARD, BYTES = 18, 4, 6, 10, 4096, 10_000


def write(folder: Path, name: str, images: int, seed: int) -> Path:
    """An index of that many training images."""
    rng = np.random.default_rng(seed)
    row = np.arange(images)
    pid = np.sort(rng.integers(0, images // PER_IDENTITY, images))
    camid = rng.integers(0, CAMERAS, images).astype(np.int32)
    camid = camid[np.lexsort((camid, pid))]
    shards = [f"train-{number:06d}.tar" for number in range(-(-images // PER_SHARD))]
    (folder / name).mkdir()
    for shard in shards:
        with (folder / name / shard).open("wb") as file:
            file.truncate(PER_SHARD * BYTES)
    write_index(folder / name, name, Columns(
        keys=pc.utf8_lpad(pa.array(row).cast(pa.string()), 8, "0"), split=np.zeros(images, np.int8), pid=pid,
        labelled=np.ones(images, np.bool_), camid=camid, role=np.zeros(images, np.int8),
        shard=(row // PER_SHARD).astype(np.int32), offset=row % PER_SHARD * BYTES,
        size=np.full(images, BYTES, np.int32), crc32=rng.integers(0, 2**32, images, dtype=np.uint32),
        height=np.full(images, 288, np.int32), width=np.full(images, 144, np.int32), shards=shards), source={})
    return folder / name


def opened(folders: list[Path]) -> tuple[PKSampler, list[float]]:
    """The sampler with its first batch, and seconds for each part of it."""
    clock = [time.perf_counter()]
    indexes = [Index.open(folder) for folder in folders]
    clock.append(time.perf_counter())
    view = View(indexes, "train")
    sampler = PKSampler(view, PKOptions(P=P, K=K), seed=0, stage="bench")
    clock.append(time.perf_counter())
    sampler.plan(0)
    clock.append(time.perf_counter())
    return sampler, np.diff(clock).tolist()


def each(act: Callable[[int], object], steps: range) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    for step in steps:
        act(step)
    return 1000 * (time.perf_counter() - start) / len(steps)


def rank(folders: list[Path], together: Barrier, found: Queue[tuple[float, float]]) -> None:
    """One of several processes: MiB of its own, and of mapped files, for the plan."""
    before = memory()
    sampler, _ = opened(folders)
    for step in range(50):
        sampler.plan(step)
    together.wait()
    own, mapped = (after - at for after, at in zip(memory(), before, strict=True))
    found.put((own, mapped))
    together.wait()


def memory() -> tuple[float, float]:
    """MiB of this process: anonymous, and of mapped files."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["RssFile"].split()[0]) / 1024


def ranks(folders: list[Path], count: int) -> tuple[float, float]:
    """The median of so many processes."""
    context = get_context("forkserver")
    together, found = context.Barrier(count), context.Queue()
    processes = [context.Process(target=rank, args=(folders, together, found)) for _ in range(count)]
    for process in processes:
        process.start()
    every = [found.get() for _ in processes]
    for process in processes:
        process.join()
    own, mapped = (statistics.median(column) for column in zip(*every, strict=True))
    return own, mapped


def lists(folder: Path) -> tuple[Callable[[int], list[int]], float]:
    """What a plain sampler does, and the seconds until it can begin."""
    start = time.perf_counter()
    rows: dict[int, list[int]] = {}
    for row, pid in enumerate(Index.open(folder).pid.tolist()):
        rows.setdefault(pid, []).append(row)
    pids = list(rows)
    rng = random.Random(0)
    return (lambda step: [row for pid in rng.sample(pids, P) for row in rng.choices(rows[pid], k=K)],
            time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--images", type=int, default=10_000_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        whole = [write(root, "whole", given.images, 0)]
        forty = [write(root, f"part{number}", given.images // 820 * number, number) for number in range(1, 41)]
        tenth = [write(root, "tenth", given.images // 10, 41)]
        for name, folders in (("1 dataset", whole), ("40 datasets", forty), ("a tenth", tenth)):
            tries = [opened(folders) for _ in range(given.runs)]
            sampler = tries[-1][0]
            clocks = zip(*(clock for _, clock in tries), strict=True)
            index, view, first = (statistics.median(column) for column in clocks)
            print(f"{name}: {len(sampler.view):,} images, {sum(map(len, sampler.view.identities)):,} identities, "
                  f"opened in {index + view + first:.2f} s (index {index:.2f}, view and sampler {view:.2f}, "
                  f"first batch {first:.2f})")
            work = Work(sampler, ImageSpec(256, 128), Augment(flip=True, crop=True, erase=0.5), 0, "bench", 0, 10**9)

            def read(step: int, work: Work = work) -> None:
                batch, _ = work.part(step)
                batch.view.identity(batch.plan), batch.dataset, batch.camid

            # Each run goes on where the last one ended, so that none is planned twice.
            runs = [range(run * given.steps, (run + 1) * given.steps) for run in range(given.runs)]
            through = PKSampler(sampler.view, PKOptions(P=P, K=K, window=4), seed=0, stage="bench")
            plan, part, windowed = (statistics.median(each(act, steps) for steps in runs)
                                    for act in (sampler.plan, read, through.plan))
            print(f"  plan {plan:.3f} ms a batch; with labels and augmentation {part:.3f} ms; through a window of 4 "
                  f"shards {windowed:.3f} ms")
        act, seconds = lists(whole[0])
        print(f"lists of rows, 1 dataset: ready in {seconds:.2f} s, {each(act, range(given.steps)):.3f} ms a batch, "
              "cameras and passes left out")
        for count in (1, 8, 64):
            own, mapped = ranks(forty, count)
            print(f"{count} ranks: {own:.0f} MiB each of its own, {mapped:.0f} MiB of shared pages", flush=True)


if __name__ == "__main__":
    main()
