"""Embeddings of the images of a view, each rank computing its share."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from embae.datasets.console.progress import note
from embae.datasets.files.locks import unique_name
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.view import View
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.features import seen_as
from embae.trainer.inference.options import Inference
from embae.trainer.inference.shared_array import content_key, fill, finish
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import describe_cameras, list_cameras
from embae.trainer.recipe.scoring import TTA
from embae.trainer.retrieval.work_split import WorkSplit, threads
from embae.trainer.runtime.distributed import World, barrier, broadcast_object, on_first_rank, sum_over_ranks


def views(images: Tensor, spec: ImageSpec, tta: TTA) -> Iterator[Tensor]:
    """What the embedding is averaged over (Hermans et al. 2017): `(B, 3, H, W)` each.

    Args:
        images: At the size of `read_size`.
        spec: What the model takes.
        tta: ``none``; ``flip``, the image and its mirror image; ``ten-crop``, the centre and the four corners of the
            image at 9/8 of the input size, each with its mirror image.
    """
    height, width = spec.size
    down, right = images.shape[2] - height, images.shape[3] - width
    corners = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)] if tta == "ten-crop" else [(0, 0)]
    for top, left in corners:
        crop = images[:, :, top:top + height, left:left + width]
        yield crop
        if tta != "none":
            yield crop.flip(3)


def read_size(spec: ImageSpec, tta: TTA) -> tuple[int, int]:
    """Height and width that images are read at."""
    return spec.margin if tta == "ten-crop" else spec.size


@contextmanager
def embedded(model: EmbAE, view: View, inference: Inference, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Embeddings of a view to search by, each rank computing its share: `(images, Z)` float32, on every rank.

    A memory-mapped file in the cache folder stores them, one copy on each node, until the context ends. A start after
    a kill resumes the computation. The embeddings are the same bit for bit on any number of ranks.

    Args:
        model: In eval mode, on the rank's device.
        view: The images.
        inference: How they go through the model.
        rows: `(N,)`, rows of the view in the order in which they are computed and returned; None takes all in order.
    """
    rows = np.arange(len(view)) if rows is None else rows
    spec, tta, world, reading = inference.spec, inference.tta, inference.world, inference.reading
    through = [spec.size, spec.mean, spec.std, tta, reading.loader, reading.batch, world.device.type, model.cameras,
               model.last_stride, model.unit]
    name = f"embeddings-{content_key(through, seen_as(model, view, rows), model)}"

    def compute(chosen: np.ndarray) -> Generator[Tensor, None, None]:
        with closing(read_batches(view, chosen, spec, reading, world.device, read_size(spec, tta))) as batches:
            for batch in batches:
                with torch.inference_mode():
                    cameras = model.image_cameras(batch)
                    mean = torch.stack([model.encode(crop, cameras) for crop in views(batch.inputs, spec, tta)]).mean(0)
                    embeddings = model.for_search(mean).float()
                yield embeddings

    # A second evaluation of the same model at the same time has its own file.
    with unique_name(inference.cache, name) if world.first else nullcontext(name) as unique:
        path = inference.cache / f"{broadcast_object(unique)}.npy"
        # One rank looks: a network file system remembers for a while that a file was not there.
        if not broadcast_object(path.exists() if world.first else None):
            fill(path, rows, (model.z,), compute, world, reading.batch)
            if world.first:
                finish(path)
        barrier()
        try:
            yield np.load(path, mmap_mode="r")
            barrier()  # a network file system takes a file away from those who still read it
        finally:
            if world.first:
                path.unlink(missing_ok=True)


def note_unknown_cameras(model: EmbAE, views: Sequence[View]) -> None:
    """Says which cameras of each dataset a model that is calibrated by camera does not know, or not by name."""
    known_cameras = model.known_cameras
    names = {camera: name for view in views for camera, name in view.camera_names.items()}
    if guessed := sorted({camera for view in views for camera in known_cameras.matched_by_number(view)}):
        note(f"the model knows cameras by number alone, and takes {describe_cameras(guessed, names)} for its cameras "
             f"{describe_cameras(guessed, {})}; if they had other numbers when it was calibrated, calibrate it again")
    all_unknown = sorted({camera for view in views for camera in known_cameras.unknown(view)})
    for dataset in dict.fromkeys(dataset for dataset, _ in all_unknown if known_cameras.cameras):
        unknown = [camera for camera in all_unknown if camera[0] == dataset]
        text = (f"{dataset}: the model is not calibrated on {len(unknown)} of its cameras "
                f"({list_cameras(unknown, names)}); their images go through the statistics that all cameras share")
        if dataset not in {other for other, _ in known_cameras.cameras}:
            text += (f". It knows {describe_cameras(known_cameras.cameras, known_cameras.names)}; if these are the "
                     "same cameras, give the folder that name with --name")
        note(text)


def spread_over(world: World) -> WorkSplit:
    """This rank's part in work on arrays, with its share of the machine's threads."""
    here = threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def add(array: np.ndarray) -> np.ndarray:
        return sum_over_ranks(torch.from_numpy(array).to(world.device)).cpu().numpy()

    def on_first(compute: Callable[[], np.ndarray]) -> np.ndarray:
        return broadcast_object(on_first_rank(world, compute))

    return WorkSplit(world.rank, world.world_size, add, here, on_first)
