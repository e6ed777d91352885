"""Backbone features computed once, for stages that leave the backbone frozen and flip images at most.

What such a stage would decode and compute again every epoch is two vectors an image: of the image and of its mirror
image. They lie in a memory-mapped file, found by a key of everything they depend on, in the order of the images'
content: batches in the index's order, which knows identities, would let these round the features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from embae.datasets.augment import Augment, ImageSpec
from embae.datasets.batch import Batch, Work
from embae.datasets.index_writer import write_whole
from embae.datasets.loading import LoaderName, open_loader
from embae.datasets.plan import SequentialSampler, by_content
from embae.datasets.to_device import to_device
from embae.datasets.view import View
from embae.trainer.distributed import World, barrier, broadcast_object
from embae.trainer.parts import EmbAE

EXTRACT = 128  # images at a time
CHUNK = 8 * EXTRACT  # images whose features are lost at most where a rank is killed


class Features:
    """Features by row of a view: `(images, 2, F)` float32, memory-mapped; index 1 is the mirror image.

    Args:
        stored: As they lie on disk.
        place: `(images,)`, where each row lies.
    """

    def __init__(self, stored: np.ndarray, place: np.ndarray):
        self._stored, self._place, self.shape = stored, place, stored.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *rest = index if isinstance(index, tuple) else (index,)
        found = self._place[rows], *rest
        return self._stored[found]


class Cached(NamedTuple):
    """Features of a view's images.

    Attributes:
        features: By row.
        rank_seconds: Wall time × ranks that they took, whenever that was.
    """

    features: Features
    rank_seconds: float


class FeatureLoader:
    """The batches of a `Work` with cached features for images: the same rows, flipped alike."""

    def __init__(self, work: Work, features: Features, device: torch.device):
        self.name = "features"
        self._work, self._features, self._device = work, features, device

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._work)):
            batch, draws = self._work.part(number)
            batch.inputs = to_device(self._features[batch.rows, draws.flip], self._device)
            yield batch

    def close(self) -> None:
        """Nothing to free: the file is shared."""


def cached_features(model: EmbAE, view: View, spec: ImageSpec, world: World, *, bf16: bool, folder: Path,
                    loader: LoaderName, threads: int | None) -> Cached:
    """Features of every image of a view and of its mirror image, each rank computing its share.

    Args:
        model: Its backbone in eval mode, on the training device.
        view: The images.
        spec: What the model takes.
        world: This rank.
        bf16: Whether to compute under bfloat16 autocast, as the stage would.
        folder: Where the cache lies, on a file system that all ranks see.
        loader: What decodes.
        threads: Decoding threads.
    """
    order = by_content(view)
    through = [spec.size, spec.mean, spec.std, bf16, loader, world.device.type, model.cameras, model.last_stride]
    key = content_key(through, seen_as(model, view, order), model.backbone)
    path = folder / f"features-{key}.npy"
    took = path.with_suffix(".seconds")
    # One rank says whether it is there: a network file system may show it to some before others, and those would wait.
    if not broadcast_object(path.exists()):
        def compute(batch: Batch) -> torch.Tensor:
            which = model.cameras_of(batch)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                return torch.stack([model.extract(images, which).float()
                                    for images in (batch.inputs, batch.inputs.flip(3))], 1)

        batches = partial(extract, view, spec=spec, device=world.device, loader=loader, threads=threads)
        fill(path, order, (2, model.features), batches, compute, world)
        if world.first:
            chunks = path.with_suffix(".chunks")
            _write_seconds(took, sum(float(chunk.read_text()) for chunk in chunks.iterdir() if not chunk.suffix))
            finish(path)
    barrier()
    place = np.empty(len(view), np.int64)
    place[order] = np.arange(len(view))
    return Cached(Features(np.load(path, mmap_mode="r"), place), float(took.read_text(encoding="utf-8")))


def content_key(through: list[Any], fingerprints: np.ndarray, weights: torch.nn.Module) -> str:
    """A name for what is computed of images: by these, by weights, and by all that it went through."""
    key = hashlib.sha256(json.dumps(through).encode())
    key.update(fingerprints.tobytes())
    for name, value in sorted(weights.state_dict().items()):
        key.update(name.encode())
        key.update(value.detach().cpu().numpy().tobytes())
    return key.hexdigest()[:16]


def seen_as(model: EmbAE, view: View, rows: np.ndarray) -> np.ndarray:
    """What rows of a view are to a model: a number for each image, and where its camera stands among the model's."""
    which = model.numbers(view, rows)
    return np.concatenate([view.fingerprints()[rows], *([which.astype(np.uint64)] if which is not None else [])])


def fill(path: Path, rows: np.ndarray, shape: tuple[int, ...], batches: Callable[..., Generator[Batch, None, None]],
         compute: Callable[[Batch], torch.Tensor], world: World, *, size: int = EXTRACT) -> None:
    """Fills a file, chunk by chunk over the ranks; chunks that an earlier start has computed are kept.

    Batches are those of a chunk whatever the world size, so that what is computed is the same to the last bit.

    Args:
        path: The file, on a file system that all ranks see; it is there once `finish` has been called.
        rows: `(N,)`, the images in the order of the file.
        shape: Of what is computed of an image.
        batches: Given `rows` and `size`, batches of them.
        compute: Given a batch, `(B, *shape)` float32.
        world: This rank.
        size: Images at a time.
    """
    part, chunks = path.with_suffix(".partial"), path.with_suffix(".chunks")
    if world.first and not chunks.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(rows), *shape))
        chunks.mkdir()  # last: where it is, the file is there
    chunk = CHUNK // EXTRACT * size
    missing = broadcast_object([number for number in range(-(-len(rows) // chunk))
                                if not (chunks / f"{number}").exists()] if world.first else None)
    own = missing[world.rank::world.world_size]
    if own:
        pieces = {number: rows[number * chunk:(number + 1) * chunk] for number in own}
        out = np.load(part, mmap_mode="r")
        begin, row_bytes = out.offset, out.strides[0]
        read = batches(rows=np.concatenate(list(pieces.values())), size=size)
        # Not through the memory map: on a network file system, pages that two ranks write get lost.
        with part.open("r+b", buffering=0) as file, contextlib.closing(read):
            for number, piece in pieces.items():
                since = time.perf_counter()
                file.seek(begin + number * chunk * row_bytes)
                for _ in range(-(-len(piece) // size)):
                    with torch.inference_mode():
                        file.write(compute(next(read)).cpu().numpy().tobytes())
                os.fsync(file.fileno())
                _write_seconds(chunks / f"{number}", time.perf_counter() - since)
    barrier()


def finish(path: Path) -> None:
    """Makes a file that every rank has filled appear; called by one of them."""
    os.replace(path.with_suffix(".partial"), path)
    shutil.rmtree(path.with_suffix(".chunks"))


def _write_seconds(path: Path, seconds: float) -> None:
    write_whole(path, lambda file: file.write(str(seconds).encode()))


def standard(features: Features, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of cached features, mirror images included: two `(F,)`.

    Args:
        features: `(images, 2, F)`.
        rows: Every row, in an order that knows no labels: sums round by their order.
        device: Where they go.
    """
    total = np.zeros((2, features.shape[2]))
    for start in range(0, len(rows), EXTRACT):
        chunk = features[rows[start:start + EXTRACT]].reshape(-1, features.shape[2]).astype(np.float64)
        total += chunk.sum(0), np.square(chunk).sum(0)
    mean, square = total / (2 * len(rows))
    variance = square - mean**2
    spread = np.sqrt(np.where(variance > 1e-10, variance, 1.0))  # a feature that never fires stays as it is
    return torch.from_numpy(mean).float().to(device), torch.from_numpy(spread).float().to(device)


def extract(view: View, rows: np.ndarray, spec: ImageSpec, device: torch.device, *, loader: LoaderName,
            threads: int | None, read: tuple[int, int] | None = None,
            size: int = EXTRACT) -> Generator[Batch, None, None]:
    """Unaugmented batches of rows of a view, in order.

    Args:
        view: The images.
        rows: `(N,)`, the rows; may be empty.
        spec: What the model takes.
        device: Where the images go.
        loader: What decodes.
        threads: Decoding threads.
        read: Height and width to resize to; by default what the model takes.
        size: Images at a time.
    """
    if not len(rows):
        return
    sampler = SequentialSampler(view, batch=min(size, len(rows)), rows=rows)
    # Seed and stage key the augmentation, and there is none.
    work = Work(sampler, spec, Augment(), seed=0, stage="", start=0, stop=len(sampler), read=read)
    opened = open_loader(work, loader=loader, device=device, threads=threads)
    try:
        yield from opened
    finally:
        opened.close()
