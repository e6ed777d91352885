"""Embeddings of query and gallery, and their scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embae.datasets.augment import ImageSpec
from embae.datasets.batch import Batch
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.index_writer import write_whole
from embae.datasets.loading import LoaderName
from embae.datasets.progress import note
from embae.datasets.records import ROLES
from embae.datasets.view import View
from embae.trainer.distributed import World, barrier, broadcast_object, sum_over_ranks
from embae.trainer.features import content_key, extract, fill, finish, seen_as
from embae.trainer.fixed_point import blocks
from embae.trainer.known_cameras import listed, tell
from embae.trainer.parts import EmbAE
from embae.trainer.refined import PLAIN, Refined
from embae.trainer.schema import TTA
from embae.trainer.scores import Labels, PerQuery, interval
from embae.trainer.sole import sole
from embae.trainer.spread import Spread, threads


@dataclass(frozen=True)
class Reading:
    """How images are read for scoring: what decodes, with how many threads, how many at a time."""

    loader: LoaderName = "dali"
    threads: int | None = None
    batch: int = 256


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
def embedded(model: EmbAE, view: View, spec: ImageSpec, tta: TTA, world: World, reading: Reading, folder: Path,
             rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Embeddings of a view to search by, each rank computing its share: `(images, Z)` float32, on every rank.

    They lie in a memory-mapped file, one copy a node, for as long as the context lasts; a start after a kill goes on
    where the last one was. The same bit for bit on any number of ranks.

    Args:
        model: In eval mode, on the rank's device.
        view: The images.
        spec: What the model takes.
        tta: Test-time augmentation.
        world: This rank.
        reading: How images are read.
        folder: Where the file lies, on a file system that all ranks see.
        rows: `(N,)`, which of them, and in which order they are computed and returned; by default all as they lie.
    """
    rows = np.arange(len(view)) if rows is None else rows
    device, loader, size = world.device, reading.loader, reading.batch
    through = [spec.size, spec.mean, spec.std, tta, loader, size, device.type, model.cameras, model.last_stride,
               model.unit]
    name = f"embeddings-{content_key(through, seen_as(model, view, rows), model)}"

    def compute(batch: Batch) -> Tensor:
        which = model.cameras_of(batch)
        mean = torch.stack([model.encode(crop, which) for crop in views(batch.inputs, spec, tta)]).mean(0)
        return model.for_search(mean).float()

    # A second evaluation of the same model at the same time has a file of its own.
    with sole(folder, name) if world.first else nullcontext(name) as held:
        path = folder / f"{broadcast_object(held)}.npy"
        # One rank looks: a network file system remembers for a while that a file was not there.
        if not broadcast_object(path.exists() if world.first else None):
            batches = partial(extract, view, spec=spec, device=device, loader=loader, threads=reading.threads,
                              read=read_size(spec, tta))
            fill(path, rows, (model.z,), batches, compute, world, size=size)
            if world.first:
                finish(path)
        barrier()
        try:
            yield np.load(path, mmap_mode="r")
            barrier()  # a network file system takes a file away from those who still read it
        finally:
            if world.first:
                path.unlink(missing_ok=True)


def labels(view: View) -> Labels:
    """What the metric may know of a view's images."""
    rows = np.arange(len(view))
    known, role = view.column("labelled", rows).astype(bool), view.column("role", rows)
    return Labels(view.column("pid", rows), view.column("camid", rows), known & (role == ROLES.index("person")),
                  role == ROLES.index("junk"))


def note_strange_cameras(model: EmbAE, views: Sequence[View]) -> None:
    """Says which cameras of each dataset a model that is calibrated by camera does not know, or not by name."""
    known = model.known
    names = {camera: name for view in views for camera, name in view.camera_names.items()}
    if guessed := sorted({camera for view in views for camera in known.by_number(view)}):
        note(f"the model knows cameras by number alone, and takes {tell(guessed, names)} for its cameras "
             f"{tell(guessed, {})}; if they had other numbers when it was calibrated, calibrate it again")
    strange = sorted({camera for view in views for camera in known.strange(view)})
    for dataset in dict.fromkeys(dataset for dataset, _ in strange if known.cameras):
        own = [camera for camera in strange if camera[0] == dataset]
        said = (f"{dataset}: the model is not calibrated on {len(own)} of its cameras ({listed(own, names)}); their "
                "images go through the statistics that all cameras share")
        if dataset not in {other for other, _ in known.cameras}:
            said += (f". It knows {tell(known.cameras, known.names)}; where these are the same cameras, give the "
                     "folder that name with --name")
        note(said)


def evaluate(model: EmbAE, index: Index, spec: ImageSpec, tta: TTA, world: World, reading: Reading, folder: Path, *,
             refined: Refined = PLAIN, keep: Path | None = None) -> dict[str, Any]:
    """Ranks a dataset's gallery for each of its queries: spread over the ranks, the same bit for bit on any number.

    Args:
        model: In eval mode, on the rank's device.
        index: The dataset.
        spec: What the model takes.
        tta: Test-time augmentation.
        world: This rank.
        reading: How images are read.
        folder: Where embeddings lie meanwhile, on a file system that all ranks see.
        refined: What is done to the ranking.
        keep: Where to keep the raw embeddings of query and gallery, in the order of the index; .npz.

    Returns:
        JSON-ready scores, on every rank: `Scores.to_dict` and, under ``interval``, 95 % intervals over resampled
        identities.

    Raises:
        DataError: The dataset has no query or no gallery, or no query has a match.
        FloatingPointError: An embedding is not finite.
    """
    both = View([index], "query"), View([index], "gallery")
    if world.first:
        note_strange_cameras(model, both)
    with (embedded(model, both[0], spec, tta, world, reading, folder) as query,
          embedded(model, both[1], spec, tta, world, reading, folder) as gallery):
        for embeddings in (query, gallery):
            _check(embeddings, index, world)
        known = labels(both[0]), labels(both[1])
        ranked = refined.rank(query, gallery, *known, spread_over(world))
        if not (ranked.first > 0).any():
            raise DataError(f"{index.root}: none of {len(query)} queries has an image of its identity on another "
                            "camera of the gallery, so there is nothing to score; look at pids and camids with embae "
                            "inspect")
        if keep and world.first:
            write_embeddings(keep, query, gallery)
    return told(ranked, known[0])


def told(ranked: PerQuery, query_labels: Labels) -> dict[str, Any]:
    """Results of queries, of which one has a match at least, as `evaluate` returns them."""
    values = ranked.values()
    intervals = {name: interval(values[name], query_labels) for name in ("Rank-1", "mAP", "Rank-1-nd", "mAP-nd")}
    return {**ranked.scores().to_dict(), "interval": intervals}


def _check(embeddings: np.ndarray, index: Index, world: World) -> None:
    """Each rank looks at its share; all raise, or none."""
    broken = np.zeros(1, np.int64)
    own = spread_over(world).own(len(embeddings))
    for rows in blocks(own.stop - own.start, 4096):
        broken += np.count_nonzero(~np.isfinite(embeddings[own][rows]).all(1))
    if count := int(spread_over(world).add(broken)[0]):
        raise FloatingPointError(f"{index.name}: embeddings of {count} of {len(embeddings)} images are not finite; "
                                 "try a smaller optimizer.lr, or clip: 1.0")


def spread_over(world: World) -> Spread:
    """This rank's part in work on arrays, with its share of the machine's threads."""
    here = threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def add(array: np.ndarray) -> np.ndarray:
        return sum_over_ranks(torch.from_numpy(array).to(world.device)).cpu().numpy()

    return Spread(world.rank, world.world_size, add, here)


def write_embeddings(path: Path, query: np.ndarray, gallery: np.ndarray) -> None:
    """Keeps raw embeddings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: np.savez(file, query=query, gallery=gallery))
