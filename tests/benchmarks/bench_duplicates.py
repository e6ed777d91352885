"""Near-duplicates: what hashing costs beside decoding, and how long the search takes.

    python tests/benchmarks/bench_duplicates.py [--images 1000000] [--hashed 2000] [--runs 3]

First line: images/s and CPU time an image of `image_hash` on drawn people stored at 288x144 and at 128x64, and of a
full decode to RGB by Pillow, in one process, the median of the runs. Second: the search (`nearest`) of so many random
hashes in two datasets, a hundredth of them planted copies at 0 to `DISTANCE` bits, all of which must be found; seconds
and the peak of the process's memory.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from embae.datasets.images.encoding import prepare
from embae.datasets.merging.duplicates import DISTANCE, nearest
from embae.datasets.merging.perceptual_hash import image_hash
from embae.datasets.readers.read import read_records


def decode(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB")


def seconds(work: Callable[[bytes], object], images: list[bytes]) -> float:
    """CPU seconds an image."""
    start = time.process_time()
    for data in images:
        work(data)
    return (time.process_time() - start) / len(images)


def planted(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes, groups, and the images that are copies of one of the other dataset."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 2**64, (images, 4), dtype=np.uint64)
    group = np.repeat([0, 2], [images - images // 2, images // 2]).astype(np.int32)
    copies = rng.choice(np.arange(images - images // 2, images), images // 100, replace=False)
    raw = np.unpackbits(found[copies - images // 2].view(np.uint8), axis=1)
    for number, bits in enumerate(rng.integers(0, DISTANCE + 1, len(copies))):
        raw[number, rng.choice(256, bits, replace=False)] ^= 1
    found[copies] = np.packbits(raw, axis=1).view(np.uint64)
    return found, group, copies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--hashed", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    drawn = read_records("synthetic", None, {"domain": "plaza", "identities": "40"})[:chosen.hashed // 10]
    people = [record.image.read() for record in drawn]
    for size in ((288, 144), (128, 64)):
        images = [prepare(data, "drawn", size)[0] for data in people] * 10
        taken = {name: statistics.median(seconds(work, images) for _ in range(chosen.runs)) for name, work in
                 (("hash", lambda data: image_hash(data, "drawn")), ("decode", decode))}
        print(f"{size[0]}x{size[1]}: hash {1e3 * taken['hash']:.3f} ms an image ({1 / taken['hash']:,.0f}/s a core), "
              f"full decode {1e3 * taken['decode']:.3f} ms; ratio {taken['hash'] / taken['decode']:.2f}", flush=True)
    found, group, copies = planted(chosen.images)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    image, _, _ = nearest(found, group)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.isin(copies, image).all()
    print(f"search of {chosen.images:,} hashes within {DISTANCE} bits: {took:.1f} s, {len(copies):,} copies all found, "
          f"peak {peak / 1024:,.0f} MB ({before / 1024:,.0f} MB before)")


if __name__ == "__main__":
    main()
