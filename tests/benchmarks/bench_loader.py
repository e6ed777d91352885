"""Loading of P × K batches by DALI, beside other ways to load the same images with the same augmentation.

    python tests/benchmarks/bench_loader.py [--runs 3] [--steps 400] [--threads 2] [--data FOLDER]

Synthetic JPEGs of about 10 KB, sharded twice: as they are (320×160, so that all loaders must resize) and stored at the
size that training reads (288×144). P=18, K=4, 256×128; flip, 9/8 crop, erasing, normalisation. A line for each way:
images/s and CPU milliseconds an image (user and system, of this process and its workers, opening and closing
included), medians over alternated runs, and how many times less than the DataLoader that is.

* DataLoader: torch's, with Pillow and torchvision, as torchreid and fast-reid load; as many workers as threads.
* wds alone: the webdataset library's own pipeline in a DataLoader, with Pillow and torchvision. It reads shards from
  one end to the other with a shuffle buffer: no P × K batches.
* dali alone: DALI's own webdataset reader, likewise.
* webdataset, dali: the two loaders of this project, on the P × K plan, with checksums.
* decoding: torchvision's decode_jpeg (libjpeg-turbo) of the same bytes in one thread, and nothing else. The last column
  is each way's images a CPU second as a share of that.

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
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
import torchvision.transforms as transforms
import webdataset
from nvidia.dali import pipeline_def
from nvidia.dali.math import sqrt as dali_sqrt
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.loading.image_spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from embae.datasets.loading.open_loader import open_loader
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.readers.synthetic import list_records
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

SPEC, AUGMENT, P, K = ImageSpec(256, 128), Augment(flip=True, crop=True, erase=0.5), 18, 4

Load = Callable[[Index, int, int], Iterator[torch.Tensor]]
"""Batches of a dataset: so many steps of P × K images, by so many threads or workers."""


def shards(folder: Path) -> dict[str, Index]:
    """The same images as they are, and at the size that training reads."""
    drawn = [record for record in list_records("plaza", identities=60, cameras=4, images_per_camera=4, height=320)
             if record.split == "train"]
    return {name: write_shards(name, drawn, folder, source={"reader": "synthetic"}, options=ShardOptions(size=size))
            for name, size in (("originals", None), ("stored", SPEC.margin))}


def sampler(index: Index) -> PKSampler:
    """The batch plan that all read."""
    return PKSampler(View([index], "train"), PKOptions(P=P, K=K), seed=0, stage="bench")


TRANSFORM = transforms.Compose([
    transforms.Resize(SPEC.margin), transforms.RandomCrop(SPEC.size), transforms.RandomHorizontalFlip(),
    transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    transforms.RandomErasing(AUGMENT.erase, (0.02, 0.4), (0.3, 3.3))])


def transformed(data: bytes) -> torch.Tensor:
    """One image, as most do it."""
    return TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))


class Images(torch.utils.data.Dataset):
    """What a DataLoader reads."""

    def __init__(self, view: View):
        self._reader = ViewReader(view)

    def __getitem__(self, row: int) -> torch.Tensor:
        (data,) = self._reader.read(np.array([row]))
        return transformed(data)


def dataloader(index: Index, steps: int, threads: int) -> Iterator[torch.Tensor]:
    """Batches of a torch DataLoader."""
    plan = sampler(index)
    batches = [plan.plan(step).tolist() for step in range(steps)]
    yield from torch.utils.data.DataLoader(Images(plan.view), batch_sampler=batches, num_workers=threads)


def tars(index: Index) -> list[str]:
    """The shards of the training images."""
    return [str(index.root / name) for name in index.shards if name.startswith("train")]


def wds_alone(index: Index, steps: int, threads: int) -> Iterator[torch.Tensor]:
    """Batches of webdataset's own pipeline."""
    split = webdataset.split_by_worker if len(tars(index)) >= threads else webdataset.shardlists.single_node_only
    images = webdataset.WebDataset(tars(index), shardshuffle=False, workersplitter=split, empty_check=False)
    images = images.repeat().shuffle(1000).to_tuple("jpg").map_tuple(transformed).batched(P * K)
    batches = torch.utils.data.DataLoader(images, batch_size=None, num_workers=threads)
    for (batch,), _ in zip(batches, range(steps), strict=False):
        yield batch


@pipeline_def
def _sequential(index: Index):  # type: ignore[no-untyped-def]
    data = fn.readers.webdataset(paths=tars(index), ext=["jpg"], random_shuffle=True, initial_fill=1000)
    images = fn.decoders.image(data, device="cpu", output_type=types.RGB)
    if index.image != SPEC.margin:
        images = fn.resize(images, size=SPEC.margin, antialias=True)
    area = fn.random.uniform(range=(0.02, 0.4)) * SPEC.size[0] * SPEC.size[1]
    ratio = fn.random.uniform(range=(0.3, 3.3))
    shape = fn.stack(dali_sqrt(area * ratio), dali_sqrt(area / ratio)) * fn.random.coin_flip(probability=AUGMENT.erase)
    images = fn.crop(images, crop=SPEC.size, crop_pos_x=fn.random.uniform(range=(0, 1)),
                     crop_pos_y=fn.random.uniform(range=(0, 1)))
    images = fn.erase(images, anchor=fn.random.uniform(range=(0, 1), shape=2), normalized_anchor=True, shape=shape,
                      axis_names="HW", fill_value=SPEC.fill)
    return fn.crop_mirror_normalize(images, mirror=fn.random.coin_flip(), dtype=types.FLOAT, output_layout="HWC",
                                    mean=[255 * value for value in IMAGENET_MEAN],
                                    std=[255 * value for value in IMAGENET_STD])


def dali_alone(index: Index, steps: int, threads: int) -> Iterator[torch.Tensor]:
    """Batches of DALI's own reader."""
    pipeline = _sequential(index, batch_size=P * K, num_threads=threads, device_id=None, prefetch_queue_depth=3)
    pipeline.build()
    for _ in range(steps):
        (images,) = pipeline.run()
        yield torch.from_dlpack(images.as_tensor())


def ours(loader: str) -> Load:
    """Batches of one of our loaders."""
    def read(index: Index, steps: int, threads: int) -> Iterator[torch.Tensor]:
        work = Work(sampler(index), SPEC, AUGMENT, seed=0, stage="bench", start=0, stop=steps)
        opened = open_loader(work, loader=loader, device=torch.device("cpu"), threads=threads)  # type: ignore[arg-type]
        yield from (batch.inputs for batch in opened)
        opened.close()
    return read


def cpu() -> float:
    """CPU seconds of this process and of those children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def decoding(index: Index, steps: int, threads: int) -> Iterator[torch.Tensor]:
    """The plan's images decoded one after the other, and nothing else."""
    plan = sampler(index)
    for step in range(steps):
        for data in ViewReader(plan.view).read(plan.plan(step)):
            decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        yield torch.empty(P * K)


def measure(read: Load, index: Index, steps: int, threads: int) -> tuple[float, float]:
    """Images a second, and CPU milliseconds an image."""
    before, start = cpu(), time.perf_counter()
    images = sum(len(batch) for batch in read(index, steps, threads))
    seconds = time.perf_counter() - start
    gc.collect()  # the DataLoader's workers end here, and only then count
    return images / seconds, 1000 * (cpu() - before) / images


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--data", type=Path, default=Path(tempfile.gettempdir(), "embae-bench-loader"))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    ways: dict[str, Load] = {"DataLoader": dataloader, "wds alone": wds_alone, "dali alone": dali_alone,
                             "webdataset": ours("webdataset"), "dali": ours("dali"), "decoding": decoding}
    plain = 0.0  # what a DataLoader spends on the originals: what one pays who has no shards at training size
    for name, index in shards(given.data).items():
        size = (index.root / index.shards[0]).stat().st_size / len(index)
        print(f"{name}: {index.image[0]}×{index.image[1]}, {size / 1000:.0f} kB an image in its tar")  # type: ignore[index]
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for run in range(-1, given.runs):  # the first warms up
            for way, read in ways.items():
                found = measure(read, index, given.steps if run >= 0 else 3, given.threads)
                if run >= 0:
                    runs[way].append(found)
        median = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in runs.items()}
        plain = plain or median["DataLoader"][1]
        for way, (rate, spent) in median.items():
            print(f"  {way:12} {rate:7,.0f} images/s  {spent:6.2f} ms CPU an image"
                  f"  {rate / median['DataLoader'][0]:5.2f}× as fast  {median['DataLoader'][1] / spent:5.2f}× less CPU"
                  f"  {plain / spent:5.2f}× less than DataLoader on originals"
                  f"  {median['decoding'][1] / spent:5.2f} of decoding's rate")


if __name__ == "__main__":
    main()
