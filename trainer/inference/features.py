"""Backbone features computed once, for stages that leave the backbone frozen and flip images at most.

What such a stage would decode and compute again every epoch is two vectors an image: of the image and of its mirror
image. They lie in a memory-mapped file, found by a key of everything they depend on, in the order of the images'
content: batches in the index's order, which knows identities, would let these round the features.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.view import View
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.options import Inference
from embae.trainer.inference.shared_array import content_key, fill, finish, write_seconds
from embae.trainer.model.embae import EmbAE
from embae.trainer.runtime.distributed import barrier, broadcast_object

BATCH = 128
"""Images in a batch, whatever the recipe's: stages of several batch sizes share one cache."""


class Features:
    """Features by row of a view: `(images, 2, F)` float32, memory-mapped; index 1 is the mirror image.

    Args:
        stored: As they are on disk.
        place: `(images,)`, the row of `stored` of each image.
    """

    def __init__(self, stored: np.ndarray, place: np.ndarray):
        self._stored, self._place, self.shape = stored, place, stored.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *rest = index if isinstance(index, tuple) else (index,)
        stored_index = self._place[rows], *rest
        return self._stored[stored_index]


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
        self.features = features
        self._work, self._device = work, device

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._work)):
            batch, draws = self._work.part(number)
            batch.inputs = to_device(self.features[batch.rows, draws.flip], self._device)
            yield batch

    def close(self) -> None:
        """Nothing to free: the file is shared."""


def cached_features(model: EmbAE, view: View, inference: Inference, *, bf16: bool) -> Cached:
    """Features of every image of a view and of its mirror image, each rank computing its share.

    Args:
        model: Its backbone in eval mode, on the training device.
        view: The images.
        inference: How they go through the model; its test-time augmentation and batch size are ignored.
        bf16: Whether to compute under bfloat16 autocast, as the stage would.
    """
    spec, world, reading = inference.spec, inference.world, replace(inference.reading, batch=BATCH)
    order = order_by_content(view)
    through = [spec.size, spec.mean, spec.std, bf16, reading.loader, world.device.type, model.cameras,
               model.last_stride]
    key = content_key(through, seen_as(model, view, order), model.backbone)
    path = inference.cache / f"features-{key}.npy"
    took = path.with_suffix(".seconds")

    def compute(chosen: np.ndarray) -> Generator[torch.Tensor, None, None]:
        with closing(read_batches(view, chosen, spec, reading, world.device)) as batches:
            for batch in batches:
                with torch.inference_mode(), torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                    cameras = model.image_cameras(batch)
                    features = torch.stack([model.extract(images, cameras).float()
                                            for images in (batch.inputs, batch.inputs.flip(3))], 1)
                yield features

    # One rank decides: a network file system may show the file to some ranks before others, and those would wait.
    if not broadcast_object(path.exists()):
        fill(path, order, (2, model.features), compute, world, reading.batch)
        if world.first:
            chunks = path.with_suffix(".chunks")
            write_seconds(took, sum(float(chunk.read_text()) for chunk in chunks.iterdir() if not chunk.suffix))
            finish(path)
    barrier()
    place = np.empty(len(view), np.int64)
    place[order] = np.arange(len(view))
    return Cached(Features(np.load(path, mmap_mode="r"), place), float(took.read_text(encoding="utf-8")))


def seen_as(model: EmbAE, view: View, rows: np.ndarray) -> np.ndarray:
    """What rows of a view are to a model: a number for each image, and where its camera stands among the model's."""
    which = model.row_cameras(view, rows)
    return np.concatenate([view.fingerprints()[rows], *([which.astype(np.uint64)] if which is not None else [])])


def feature_mean_std(features: Features, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of cached features, mirror images included: two `(F,)`.

    Args:
        features: `(images, 2, F)`.
        rows: Every row, in an order that knows no labels: sums round by their order.
        device: Where they go.
    """
    total = np.zeros((2, features.shape[2]))
    for start in range(0, len(rows), BATCH):
        chunk = features[rows[start:start + BATCH]].reshape(-1, features.shape[2]).astype(np.float64)
        total += chunk.sum(0), np.square(chunk).sum(0)
    mean, square = total / (2 * len(rows))
    variance = square - mean**2
    spread = np.sqrt(np.where(variance > 1e-10, variance, 1.0))  # a feature that never fires stays as it is
    return torch.from_numpy(mean).float().to(device), torch.from_numpy(spread).float().to(device)
