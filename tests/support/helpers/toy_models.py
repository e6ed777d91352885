"""Small models, stages and batches that are the same in every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embae.datasets.loading.batch import Batch
from embae.datasets.sampling.sampler import share
from embae.datasets.sampling.view import PERSON
from embae.trainer.model.domain import Head, ModelDomain
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.stage import Stage

BACKBONE = "test_byobnet"  # 0.2 million weights, 14 batch norms with activation
KEYS = Model.model_validate(
    {"backbone": BACKBONE, "embedding": 8, "hidden": 16, "nuisance": {"dim": 6, "per": "camera"}}
)
# A batch norm for an embedding, over features pooled by a learnt exponent.
NECK = Model.model_validate({"backbone": BACKBONE, "pooling": "gem", "head": "bnneck", "unit": True})
TRIPLET = {"triplet": {}}
RECONSTRUCTION: dict[str, Any] = {"reconstruction": {}}


class ToyView:
    """Images with these identities and cameras, of one dataset.

    Args:
        pid: `(N,)` identities.
        camid: `(N,)` cameras.
    """

    names = ("toy",)
    camera_names: Mapping[tuple[str, int], str] = {}

    def __init__(self, pid: Sequence[int], camid: Sequence[int]):
        self.pid, self.camid = np.array(pid), np.array(camid)
        self.role = np.full(len(self.pid), PERSON)

    def __len__(self) -> int:
        return len(self.pid)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(rows), int), rows

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        return getattr(self, name)[rows]

    def identity(self, rows: np.ndarray) -> np.ndarray:
        return self.pid[rows]

    @property
    def identities(self) -> list[np.ndarray]:
        """Where `pid` rises from 0 without gaps."""
        counts = np.bincount(self.pid)
        return [np.stack([np.cumsum(counts) - counts, np.cumsum(counts), counts], 1)]


class Seen:
    """What a model's making asks a view for: its cameras, (dataset, camid), and what some are called."""

    def __init__(self, cameras: Sequence[tuple[str, int]], names: Mapping[tuple[str, int], str] | None = None):
        self._cameras, self.camera_names = list(cameras), names or {}

    def cameras(self) -> list[tuple[str, int]]:
        return sorted(self._cameras)


def heads(cameras: int) -> list[Head]:
    """A nuisance head for each of that many cameras."""
    return [("toy", camid) for camid in range(cameras)]


def model(
    parts: dict[str, str],
    labels: Sequence[Head] = (),
    *,
    seed: int = 0,
    of: Model = KEYS,
    classes: int = 0,
    cameras: Sequence[tuple[str, int]] = (),
    names: Mapping[tuple[str, int], str] | None = None,
    **keys: Any,
) -> EmbAE:
    """A model with fixed weights and the running statistics of some images: with fresh ones features are about 0."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        domain = ModelDomain(labels, classes, KnownCameras(cameras, names or {}))
        made = EmbAE(of, parts, domain, **keys)  # type: ignore[arg-type]
        norms = [module for module in made.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        made.backbone.train()(images(32, seed=0, size=keys.get("size", (32, 32))))
        for norm in norms:
            norm.momentum = 0.1
        for name, value in made.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value += 0.2 * torch.rand(value.shape)
    return made.train()


def images(count: int, *, seed: int = 1, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Made-up images, channels last."""
    made = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


def stage(parts: dict[str, str], loss: dict[str, Any], **keys: Any) -> Stage:
    """A stage's keys; the optimizer is plain gradient descent."""
    data = {"from": "sources", "P": 4, "K": 4} if "triplet" in loss else {"from": "sources", "batch": 8}
    plain = {"name": "sgd", "lr": 1.0, "momentum": 0.0}
    return Stage.model_validate(
        {"init": "random", "parts": parts, "data": data, "loss": loss, "epochs": 1, "optimizer": plain, **keys}
    )


def share_of(
    view: ToyView, inputs: Tensor, plan: np.ndarray, rank: int, world_size: int, accumulate: int = 1, step: int = 0
) -> list[Batch]:
    """A rank's parts of the global batch `plan`; `inputs` are those of the whole view."""
    slots = [share(len(plan), rank * accumulate + part, world_size * accumulate) for part in range(accumulate)]
    return [Batch(_take(inputs, plan[s]), plan[s], plan, s, step, view) for s in slots]  # type: ignore[arg-type]


def _take(inputs: Tensor, rows: np.ndarray) -> Tensor:
    taken = inputs[torch.from_numpy(rows)]
    return taken.contiguous(memory_format=torch.channels_last) if taken.dim() == 4 else taken


def parts_in(
    backbone: str = "absent", embedding: str = "absent", nuisance: str = "absent", decoder: str = "absent"
) -> dict[str, str]:
    """What each part does."""
    return {"backbone": backbone, "embedding": embedding, "nuisance": nuisance, "decoder": decoder}


def norm(values: dict[str, Tensor]) -> float:
    """Norm of all values together, in double precision."""
    return float(torch.stack([value.double().square().sum() for value in values.values()]).sum().sqrt())


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Norm of the differences, relative to that of what is wanted."""
    assert found.keys() == wanted.keys()
    return norm({key: found[key].double() - wanted[key].double() for key in wanted}) / norm(wanted)


class Crowd(ToyView):
    """People of two datasets: 0 to 2 are of the first one. Not everybody is seen by every camera, 4 by one alone."""

    names = ("toy", "crowd")

    def __init__(self) -> None:
        seen = {0: [1, 1, 7, 7], 1: [1, 7, 9], 2: [7, 9, 9], 3: [1, 1, 2], 4: [2, 2], 5: [1, 2, 5, 5], 6: [5, 5, 1]}
        pairs = [(pid, cam) for pid, cams in seen.items() for cam in cams]
        super().__init__([pid for pid, _ in pairs], [cam for _, cam in pairs])

    @property
    def identities(self) -> list[np.ndarray]:
        (table,) = super().identities
        return [table[:3], table[3:]]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (self.pid[rows] > 2).astype(int), rows


CROWD = Crowd()


FIRST, SECOND = np.flatnonzero(CROWD.pid < 3), np.flatnonzero(CROWD.pid > 2)
