"""Backbone features computed once, for stages that leave the backbone frozen and flip images at most.

What such a stage would decode and compute again every epoch is two vectors an image: of the image and of its mirror
image. They lie in a memory-mapped file, found by a key of everything they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from embae.datasets.augment import Augment, ImageSpec
from embae.datasets.batch import Batch, Work
from embae.datasets.loading import LoaderName, open_loader
from embae.datasets.plan import SequentialSampler, share
from embae.datasets.view import View
from embae.trainer.distributed import World, broadcast_object
from embae.trainer.parts import EmbAE

EXTRACT = 128  # images at a time


class Cached(NamedTuple):
    """Features of a view's images.

    Attributes:
        features: `(images, 2, F)` float32, memory-mapped; index 1 is the mirror image.
        rank_seconds: Wall time × ranks that they took, whenever that was.
    """

    features: np.ndarray
    rank_seconds: float


class FeatureLoader:
    """The batches of a `Work` with cached features for images: the same rows, flipped alike."""

    def __init__(self, work: Work, features: np.ndarray, device: torch.device):
        self.name = "features"
        self._work, self._features, self._device = work, features, device

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._work)):
            batch, draws = self._work.part(number)
            batch.inputs = torch.from_numpy(self._features[batch.rows, draws.flip]).to(self._device, non_blocking=True)
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
    through = [spec.size, spec.mean, spec.std, bf16, loader, world.device.type, model.cameras]
    key = hashlib.sha256(json.dumps(through).encode())
    key.update(view.fingerprints().tobytes())
    for name, value in sorted(model.backbone.state_dict().items()):
        key.update(name.encode())
        key.update(value.detach().cpu().numpy().tobytes())
    path = folder / f"features-{key.hexdigest()[:16]}.npy"
    took = path.with_suffix(".seconds")
    # One rank says whether it is there: a network file system may show it to some before others, and those would wait.
    if not broadcast_object(path.exists()):
        began = time.perf_counter()
        partial = path.with_suffix(".partial")
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(view), 2, model.features))
        dist.barrier()
        out = np.lib.format.open_memmap(partial, mode="r+")
        own = share(len(view), world.rank, world.world_size)
        rows = np.arange(own.start, own.stop)
        for batch in extract(view, rows, spec, world.device, loader=loader, threads=threads):
            which = model.cameras_of(batch)
            with torch.inference_mode(), torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                for mirrored, images in enumerate((batch.inputs, batch.inputs.flip(3))):
                    out[batch.rows, mirrored] = model.extract(images, which).float().cpu().numpy()
        out.flush()
        dist.barrier()
        if world.first:
            took.write_text(str((time.perf_counter() - began) * world.world_size), encoding="utf-8")
            os.replace(partial, path)
    dist.barrier()
    return Cached(np.load(path, mmap_mode="r"), float(took.read_text(encoding="utf-8")))


def extract(view: View, rows: np.ndarray, spec: ImageSpec, device: torch.device, *, loader: LoaderName,
            threads: int | None, read: tuple[int, int] | None = None, size: int = EXTRACT) -> Iterator[Batch]:
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
