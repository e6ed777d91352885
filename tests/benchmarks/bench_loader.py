"""Loading of P × K batches by DALI, beside a torch DataLoader with Pillow and torchvision on the same images.

    python tests/benchmarks/bench_loader.py [--runs 3] [--steps 400] [--data FOLDER]

Synthetic JPEGs of about 10 KB, sharded twice: as they are (320×160, so that both loaders must resize) and stored at the
size that training reads (288×144). P=18, K=4, 256×128; flip, 9/8 crop, erasing, normalisation; 2 threads or 2 workers;
both read the same batches from the same shards, and check no more and no less than they do in training. A line for each
way: images/s and CPU milliseconds an image (user and system, of this process and its workers, opening and closing
included), medians over alternated runs, and how many times less than the DataLoader that is.

What bounds that figure from above: a bare libjpeg-turbo decode of a stored image takes 0.20 ms (quality 90, 4:2:0; 0.25
without subsampling, 0.28 at 95) of DALI's; the rest is erasing, normalising to float and reading. Opening takes 0.2 to
0.5 s of CPU time once a stage, which 80 steps feel and 400 hardly. On a busy machine the same shards gave ratios from
2.8 to 3.8, so compare formats only alternated in one run, more than once.
"""

from __future__ import annotations

import argparse
import gc
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as transforms
from PIL import Image

from embae.datasets.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, ImageSpec
from embae.datasets.batch import Work
from embae.datasets.index import Index
from embae.datasets.loading import open_loader
from embae.datasets.plan import PKSampler
from embae.datasets.reading import ViewReader
from embae.datasets.sharding import write_shards
from embae.datasets.synthetic import records
from embae.datasets.view import View

SPEC, AUGMENT, P, K, THREADS = ImageSpec(256, 128), Augment(flip=True, crop=True, erase=0.5), 18, 4, 2


def shards(folder: Path) -> dict[str, Index]:
    """The same images as they are, and at the size that training reads."""
    drawn = [record for record in records("plaza", identities=60, cameras=4, images_per_camera=4, height=320)
             if record.split == "train"]
    return {name: write_shards(name, drawn, folder, source={"reader": "synthetic"}, size=size)
            for name, size in (("originals", None), ("stored", SPEC.margin))}


def sampler(index: Index) -> PKSampler:
    """The batch plan that all read."""
    return PKSampler(View([index], "train"), P=P, K=K, seed=0, stage="bench")


class Images(torch.utils.data.Dataset):
    """What a DataLoader reads."""

    def __init__(self, view: View):
        self._reader = ViewReader(view)
        self._transform = transforms.Compose([
            transforms.Resize(SPEC.margin), transforms.RandomCrop(SPEC.size), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            transforms.RandomErasing(AUGMENT.erase, (0.02, 0.4), (0.3, 3.3))])

    def __getitem__(self, row: int) -> torch.Tensor:
        (data,) = self._reader.read(np.array([row]))
        return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))


def dataloader(index: Index, steps: int) -> Iterator[torch.Tensor]:
    """Batches of a torch DataLoader."""
    plan = sampler(index)
    batches = [plan.plan(step).tolist() for step in range(steps)]
    yield from torch.utils.data.DataLoader(Images(plan.view), batch_sampler=batches, num_workers=THREADS)


def ours(loader: str) -> Callable[[Index, int], Iterator[torch.Tensor]]:
    """Batches of one of our loaders."""
    def read(index: Index, steps: int) -> Iterator[torch.Tensor]:
        work = Work(sampler(index), SPEC, AUGMENT, seed=0, stage="bench", start=0, stop=steps)
        opened = open_loader(work, loader=loader, device=torch.device("cpu"), threads=THREADS)  # type: ignore[arg-type]
        yield from (batch.inputs for batch in opened)
        opened.close()
    return read


def cpu() -> float:
    """CPU seconds of this process and of those children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(read: Callable[[Index, int], Iterator[torch.Tensor]], index: Index, steps: int) -> tuple[float, float]:
    """Images a second, and CPU milliseconds an image."""
    before, start = cpu(), time.perf_counter()
    images = sum(len(batch) for batch in read(index, steps))
    seconds = time.perf_counter() - start
    gc.collect()  # the DataLoader's workers end here, and only then count
    return images / seconds, 1000 * (cpu() - before) / images


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--data", type=Path, default=Path(tempfile.gettempdir(), "embae-bench-loader"))
    given = options.parse_args()
    torch.set_num_threads(THREADS)
    ways = {"DataLoader": dataloader, "webdataset": ours("webdataset"), "dali": ours("dali")}
    plain = 0.0  # what a DataLoader spends on the originals: what one pays who has no shards at training size
    for name, index in shards(given.data).items():
        size = (index.root / index.shards[0]).stat().st_size / len(index)
        print(f"{name}: {index.image[0]}×{index.image[1]}, {size / 1000:.0f} kB an image in its tar")  # type: ignore[index]
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for run in range(-1, given.runs):  # the first warms up
            for way, read in ways.items():
                found = measure(read, index, given.steps if run >= 0 else 3)
                if run >= 0:
                    runs[way].append(found)
        median = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in runs.items()}
        plain = plain or median["DataLoader"][1]
        for way, (rate, spent) in median.items():
            print(f"  {way:12} {rate:7,.0f} images/s  {spent:6.2f} ms CPU an image"
                  f"  {rate / median['DataLoader'][0]:5.2f}× as fast  {median['DataLoader'][1] / spent:5.2f}× less CPU"
                  f"  {plain / spent:5.2f}× less than DataLoader on originals")


if __name__ == "__main__":
    main()
