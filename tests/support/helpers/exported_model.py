"""A trained model on disk, without training one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.sampling.view import View
from embae.trainer.model.camera_tables import MEAN, VAR
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import write
from helpers import tiny_run
from helpers.toy_models import KEYS, heads, model, parts_in

STORED, OTHER = ImageSpec(40, 20), ImageSpec(32, 16)  # the size of the tiny datasets' images, and a smaller one


def export(folder: Path, spec: ImageSpec, cameras: int = 0, names: Sequence[str] = ()) -> Path:
    """A model with fixed weights; calibrated on cameras, each with statistics of its own."""
    listed = [("park", camid) for camid in range(1, cameras + 1)]
    called = dict(zip(listed, names, strict=bool(names)))
    made = model(parts_in("frozen", "frozen"), cameras=listed, names=called).eval()
    state = dict(made.state_dict())
    for key in list(state) if cameras else []:
        if key.endswith("running_mean"):
            scale = torch.arange(1, cameras + 1)[:, None] / 10
            state[key.replace("running_mean", MEAN)] = state[key] + scale
            state[key.replace("running_mean", VAR)] = state[key.replace("running_mean", "running_var")] + scale
    (folder / "export").mkdir(parents=True)
    write(folder / "export", made, state, keys=KEYS, spec=spec)
    return folder


def an_export(folder: Path) -> EmbAE:
    """Of a model with all four parts, which is calibrated on two cameras."""
    made = model(parts_in("train", "train", "train", "train"), heads(2), cameras=[("toy", 0), ("toy", 1)]).eval()
    made.embedding.register_buffer("camera_shift", torch.zeros(2, made.z))
    made.embedding.register_buffer("camera_scale", torch.ones(2, made.z))
    write(folder, made, made.state_dict(), keys=KEYS, spec=ImageSpec(32, 16))
    return made


def files(folder: Path) -> list[Path]:
    """The gallery's images as files of their own."""
    made = []
    for number, data in enumerate(ViewReader(park()).read(np.arange(len(park())))):
        made.append(folder / f"{number:02d}.jpg")
        made[-1].write_bytes(data)
    return made


def park() -> View:
    return View([Index.open(tiny_run.shards() / "park")], "gallery")
