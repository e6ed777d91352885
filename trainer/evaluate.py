"""Embeddings of query and gallery, and their scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embae.datasets.augment import ImageSpec
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.loading import LoaderName
from embae.datasets.plan import share
from embae.datasets.progress import note
from embae.datasets.records import ROLES
from embae.datasets.view import View
from embae.trainer.distributed import World, gather_rows
from embae.trainer.features import extract
from embae.trainer.parts import EmbAE
from embae.trainer.ranking import rank_embeddings
from embae.trainer.schema import TTA
from embae.trainer.scores import Labels, interval


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


def embed(model: EmbAE, view: View, spec: ImageSpec, tta: TTA, world: World, reading: Reading,
          rows: np.ndarray | None = None) -> np.ndarray:
    """Raw embeddings of a view, every rank computing its share: `(images, Z)` float32, on every rank.

    Args:
        model: In eval mode, on the rank's device.
        view: The images.
        spec: What the model takes.
        tta: Test-time augmentation.
        world: This rank.
        reading: How images are read.
        rows: `(N,)`, which of them, and in which order they are computed and returned; by default all as they lie.
    """
    rows = np.arange(len(view)) if rows is None else rows
    own = share(len(rows), world.rank, world.world_size)
    found = torch.empty(own.stop - own.start, model.z, device=world.device)
    done = 0
    with torch.inference_mode():
        for batch in extract(view, rows[own], spec, world.device, loader=reading.loader, threads=reading.threads,
                             read=read_size(spec, tta), size=reading.batch):
            which = model.cameras_of(batch)
            crops = [model(crop, which) for crop in views(batch.inputs, spec, tta)]
            found[done:done + len(batch.rows)] = torch.stack(crops).mean(0)
            done += len(batch.rows)
    return gather_rows(found, len(rows)).cpu().numpy()


def labels(view: View) -> Labels:
    """What the metric may know of a view's images."""
    rows = np.arange(len(view))
    known, role = view.column("labelled", rows).astype(bool), view.column("role", rows)
    return Labels(view.column("pid", rows), view.column("camid", rows), known & (role == ROLES.index("person")),
                  role == ROLES.index("junk"))


@dataclass(frozen=True)
class Evaluation:
    """A dataset's scores, and what they were made of.

    Attributes:
        scores: JSON-ready: `Scores.to_dict` and, under ``interval``, 95 % intervals over resampled identities.
        query: `(Q, Z)` float32 raw embeddings.
        gallery: `(N, Z)`.
    """

    scores: dict[str, Any]
    query: np.ndarray
    gallery: np.ndarray


def evaluate(model: EmbAE, index: Index, spec: ImageSpec, tta: TTA, world: World, reading: Reading) -> Evaluation:
    """Ranks a dataset's gallery for each of its queries.

    Args:
        model: In eval mode, on the rank's device.
        index: The dataset.
        spec: What the model takes.
        tta: Test-time augmentation.
        world: This rank.
        reading: How images are read.

    Raises:
        DataError: The dataset has no query or no gallery, or no query has a match.
        FloatingPointError: An embedding is not finite.
    """
    views = View([index], "query"), View([index], "gallery")
    strange = {camera for view in views for camera in view.cameras()} - set(model.cameras)
    if model.cameras and strange and world.first:
        note(f"{index.name}: the model is not calibrated on {len(strange)} of its cameras "
             f"({', '.join(str(camid) for _, camid in sorted(strange)[:5])}); their images go through the statistics "
             "that all cameras share")
    found = [embed(model, view, spec, tta, world, reading) for view in views]
    for view, embeddings in zip(views, found, strict=True):
        broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
        if len(broken):
            raise FloatingPointError(f"{index.name}: embeddings of {len(broken)} of {len(view)} images are not finite; "
                                     "try a smaller optimizer.lr, or clip: 1.0")
    known = [labels(view) for view in views]
    ranked = rank_embeddings(found[0], found[1], known[0], known[1])
    values = ranked.values()
    if np.isnan(values["mAP"]).all():
        raise DataError(f"{index.root}: none of {len(found[0])} queries has an image of its identity on another camera "
                        "of the gallery, so there is nothing to score; look at pids and camids with embae inspect")
    intervals = {name: interval(values[name], known[0]) for name in ("Rank-1", "mAP", "Rank-1-nd", "mAP-nd")}
    return Evaluation({**ranked.scores().to_dict(), "interval": intervals}, found[0], found[1])


def write_embeddings(path: Path, found: Evaluation) -> None:
    """Keeps the raw embeddings of query and gallery, in the order of the index, to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, query=found.query, gallery=found.gallery)
    os.replace(partial, path)
