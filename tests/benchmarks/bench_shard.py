"""Sharding, beside plain decoding of the same images with Pillow, and beside copying their files.

    python tests/benchmarks/bench_shard.py IMAGES [--most 6000] [--runs 3] [--data FOLDER]

IMAGES is a folder of JPEGs. Each way handles the same files, which the system has in memory, in one and two processes:
decode reads and decodes each with Pillow (libjpeg-turbo), and for --size also resizes and encodes it as sharding does;
copy copies each file into another folder; shard is all of `write_shards`, the start of its workers and the index
included. A line for each way: images/s, medians over alternated runs, and how many times decoding's that is. Then what
the plan costs, for a million records that are only named, and the index, from parts that are only counted.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from embae.datasets.images.encoding import QUALITY, SUBSAMPLING
from embae.datasets.index.records import FileImage, Record
from embae.datasets.sharding.index import assemble
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.plan import plan_shards
from embae.datasets.sharding.write_shards import write_shards

SIZE = (288, 144)
Way = Callable[[list[Path], Path, int], None]


def decode(size: tuple[int, int] | None, files: list[Path]) -> None:
    """What nobody can do without."""
    for path in files:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            if size:
                resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
                resized.save(io.BytesIO(), "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)


def copy(folder: Path, files: list[Path]) -> None:
    """Copies files."""
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"{path.stem}-{number}.jpg")


def spread(work: Callable[[list[Path]], None], files: list[Path], processes: int) -> None:
    """Work on files in so many processes."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        list(pool.map(work, [files[start::processes] for start in range(processes)]))


@contextmanager
def silent(label: str, total: int):
    """Reports nothing."""
    yield lambda n: None


def ways(size: tuple[int, int] | None, processes: int) -> dict[str, Callable[[list[Path], Path], None]]:
    """What is compared."""
    def shard(files: list[Path], folder: Path) -> None:
        records = [Record(f"{number:08d}", "train", number // 20, number % 2, FileImage(path))
                   for number, path in enumerate(files)]
        write_shards(
            "set",
            records,
            folder,
            source={},
            options=ShardOptions(size=size, workers=processes, images_per_shard=1024),
            progress=silent,
        )
    return {"decode": lambda files, folder: spread(partial(decode, size), files, processes),
            "copy": lambda files, folder: spread(partial(copy, folder), files, processes),
            "shard": shard}


def measure(files: list[Path], folder: Path, runs: int, size: tuple[int, int] | None, processes: int) -> None:
    """Times the ways in turns."""
    found: dict[str, list[float]] = {}
    for run in range(-1, runs):  # the first warms up
        for way, work in ways(size, processes).items():
            place = Path(tempfile.mkdtemp(dir=folder))
            start = time.perf_counter()
            work(files, place)
            if run >= 0:
                found.setdefault(way, []).append(len(files) / (time.perf_counter() - start))
            shutil.rmtree(place)
    rates = {way: statistics.median(values) for way, values in found.items()}
    kind = f"stored at {size[0]}×{size[1]}" if size else "originals"
    for way, rate in rates.items():
        print(f"{kind}, {processes} at once: {way:7} {rate:7,.0f} images/s  {rate / rates['decode']:5.2f}× decoding",
              flush=True)


def plan(folder: Path, count: int) -> None:
    """What a plan of so many records costs, and the index from its parts."""
    records = [Record(f"cam{n % 8}_{n // 20:07d}_{n:08d}", "train", n // 20, n % 8,
                      FileImage(Path(f"/data/large/footage/{n // 20:07d}/cam{n % 8}_{n:08d}.jpg")))
               for n in range(count)]
    start = time.perf_counter()
    planned = plan_shards("set", records, ShardOptions())
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"plan of {count:,} records: {took:.1f} s; at most {peak / count:,.0f} bytes of memory a record, all in all")
    for stem, shard in planned.shards.items():
        part = {name: list(range(100_000_000, 100_000_000 + len(shard)))
                for name in ("offset", "size", "crc32", "height", "width")}
        (folder / f"{stem}.part.json").write_text(json.dumps({**part, "kept": list(range(len(shard))), "bad": {}}))
    start = time.perf_counter()
    assemble(folder, planned)
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"its parts become columns: {time.perf_counter() - start:.1f} s, {(now - peak) / count:,.0f} bytes more")


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("images", type=Path)
    options.add_argument("--most", type=int, default=6000)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--records", type=int, default=1_000_000)
    options.add_argument("--data", type=Path, default=None, help="where to write; by default the system's folder")
    given = options.parse_args()
    files = sorted(given.images.rglob("*.jpg"))[: given.most]
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        for size in (None, SIZE):
            for processes in (1, 2):
                measure(files, Path(folder), given.runs, size, processes)
        plan(Path(folder), given.records)


if __name__ == "__main__":
    main()
