"""A trained model on disk, without training one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from toys import KEYS, model, parts_in

from embae.datasets.augment import ImageSpec
from embae.trainer.cameras import MEAN, VAR
from embae.trainer.export import write

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
