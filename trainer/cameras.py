"""Statistics by camera: batch norms, features and embeddings that see each image through its own camera's numbers.

A model *calibrated* on cameras holds, beside its shared statistics, for each of them

    <batch norm>.camera_mean, .camera_var     `(C, channels)`, in place of running_mean and running_var
    backbone|embedding.camera_shift, .camera_scale     `(C, width)`: what the part puts out, minus shift, times scale
    backbone.camera_common     `(2, width)`: mean and deviation that features under an embedding were moved to

They are used in eval mode alone. An image of another camera goes through the shared statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Camera = tuple[str, int]
"""(dataset, camid)."""

MEAN, VAR, SHIFT, SCALE, COMMON = TABLES = ("camera_mean", "camera_var", "camera_shift", "camera_scale",
                                            "camera_common")

_which: ContextVar[Tensor | None] = ContextVar("cameras of the images in the network", default=None)


@contextmanager
def seen_by(which: Tensor | None) -> Iterator[None]:
    """Says which camera each image of a forward pass is of: `(B,)`, −1 for one that the model has no statistics of."""
    token = _which.set(which)
    try:
        yield
    finally:
        _which.reset(token)


def numbers(cameras: Sequence[Camera], names: Sequence[str], dataset: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """Where each image's camera stands in `cameras`: `(N,)` int64, −1 where it does not.

    Args:
        cameras: The model's.
        names: Names of the datasets by number.
        dataset: `(N,)` number of each image's dataset.
        camid: `(N,)` its camera.
    """
    place = {camera: number for number, camera in enumerate(cameras)}
    pairs, inverse = np.unique(np.stack([dataset, camid], 1), axis=0, return_inverse=True)
    found = np.array([place.get((names[d], int(c)), -1) for d, c in pairs], np.int64)
    return found[inverse.reshape(-1)]


def has_table(module: nn.Module, name: str) -> bool:
    """Whether a module holds this table."""
    return name in module._buffers


def make_room(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Gives a module the tables that a state dict has and it lacks; returns whether it has any now."""
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        if name in TABLES:
            try:
                owner = module.get_submodule(path)
            except AttributeError:
                continue  # loading will say that the model lacks it
            owner.register_buffer(name, torch.empty_like(value))
    return any(has_table(one, name) for one in module.modules() for name in TABLES)


def forget(module: nn.Module, names: Collection[str] = TABLES) -> None:
    """Takes tables of these names from a module and all below it."""
    for one in module.modules():
        for name in names:
            one._buffers.pop(name, None)


def without_tables(state: Mapping[str, Tensor], *, keep_batch_norm: bool) -> dict[str, Tensor]:
    """A part's state without the tables that training it makes stale.

    Args:
        state: By the part's own names.
        keep_batch_norm: Whether its batch norms keep to their statistics while it trains.
    """
    stale = (SHIFT, SCALE, COMMON) if keep_batch_norm else TABLES
    return {key: value for key, value in state.items() if key.rpartition(".")[2] not in stale}


def batch_norm_by_camera(norm: _BatchNorm, x: Tensor) -> Tensor | None:
    """A batch norm in eval mode by each image's camera: `(B, C, …)`; None where there is nothing to tell cameras by."""
    which = _which.get()
    if which is None or not has_table(norm, MEAN):
        return None
    assert norm.running_mean is not None and norm.running_var is not None
    mean = torch.cat([norm.running_mean[None], norm.get_buffer(MEAN)])[which + 1]
    var = torch.cat([norm.running_var[None], norm.get_buffer(VAR)])[which + 1]
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    shift = norm.bias - mean * scale
    shape = *scale.shape, *[1] * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


def put_out(part: nn.Module, out: Tensor, which: Tensor | None) -> Tensor:
    """What a part puts out, `(B, W)`, moved and scaled by each image's camera if it holds tables for that."""
    if which is None or not has_table(part, SHIFT):
        return out
    shift, scale = part.get_buffer(SHIFT), part.get_buffer(SCALE)
    shift = torch.cat([shift.new_zeros(1, shift.shape[1]), shift])[which + 1]
    scale = torch.cat([scale.new_ones(1, scale.shape[1]), scale])[which + 1]
    return ((out - shift) * scale).to(out.dtype)
