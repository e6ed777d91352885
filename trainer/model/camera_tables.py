"""Statistics by camera: batch norms, features and embeddings that see each image through its own camera's numbers.

A model *calibrated* on cameras holds, beside its shared statistics, for each of them

    <batch norm>.camera_mean, .camera_var     `(C, channels)`, in place of running_mean and running_var
    backbone|embedding.camera_shift, .camera_scale     `(C, width)`: what the part puts out, minus shift, times scale
    backbone.camera_common     `(2, width)`: mean and deviation of all, that each camera's are mixed with

An image of another camera goes through the shared statistics. Those of features and embeddings are used in eval mode
alone; a batch norm that has tables while it trains normalises by camera and keeps them up (`camera_norm.py`). Which
of the model's cameras an image is of says `known_cameras.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MEAN, VAR, SHIFT, SCALE, COMMON = TABLES = ("camera_mean", "camera_var", "camera_shift", "camera_scale",
                                            "camera_common")

_present: ContextVar[Tensor | None] = ContextVar("cameras of the global batch", default=None)
_which: ContextVar[Tensor | None] = ContextVar("cameras of the images in the network", default=None)


@contextmanager
def using_cameras(which: Tensor | None) -> Iterator[None]:
    """Says which camera each image of a forward pass is of: `(B,)`, −1 for one that the model has no statistics of."""
    token = _which.set(which)
    try:
        yield
    finally:
        _which.reset(token)


@contextmanager
def with_batch_cameras(present: Tensor | None) -> Iterator[None]:
    """Says which cameras a global batch has images of: `(K,)`, rising; all of the model's where nobody says."""
    token = _present.set(present)
    try:
        yield
    finally:
        _present.reset(token)


def has_table(module: nn.Module, name: str) -> bool:
    """Whether a module holds this table."""
    return name in module._buffers


def make_room(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Gives a module the tables that a state dict has and it lacks; returns whether there were any."""
    made = False
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        if name in TABLES:
            try:
                owner = module.get_submodule(path)
            except AttributeError:
                continue  # loading will say that the model lacks it
            if not has_table(owner, name):
                owner.register_buffer(name, torch.empty_like(value))
                made = True
    return made


def forget(module: nn.Module, names: Collection[str] = TABLES) -> None:
    """Takes tables of these names from a module and all below it."""
    for one in module.modules():
        for name in names:
            one._buffers.pop(name, None)


def fill_up(part: nn.Module, cameras: int, *, trains: bool) -> None:
    """Gives a part's tables rows for so many cameras: new ones do as the shared statistics do.

    Args:
        part: A part; rows that it has stay.
        cameras: How many.
        trains: Whether its batch norms go by camera while it trains, and so get tables where they have none.
    """
    for one in part.modules():
        if isinstance(one, _BatchNorm) and trains and not has_table(one, MEAN):
            for name, shared in ((MEAN, one.running_mean), (VAR, one.running_var)):
                assert shared is not None
                one.register_buffer(name, shared.new_empty(0, len(shared)))
        for name in filter(one._buffers.__contains__, (MEAN, VAR, SHIFT, SCALE)):
            table = one.get_buffer(name)
            more = table.new_zeros(cameras - len(table), table.shape[1])
            if name == SCALE:
                more += 1
            elif name in (MEAN, VAR):
                more += one.get_buffer("running_mean" if name == MEAN else "running_var")
            one.register_buffer(name, torch.cat([table, more]))


def without_tables(state: Mapping[str, Tensor], *, keep_batch_norm: bool) -> dict[str, Tensor]:
    """A part's state without the tables that training it makes stale.

    Args:
        state: By the part's own names.
        keep_batch_norm: Whether its batch norms keep to their statistics while it trains, or keep them up.
    """
    stale = (SHIFT, SCALE, COMMON) if keep_batch_norm else TABLES
    return {key: value for key, value in state.items() if key.rpartition(".")[2] not in stale}


def trained_by(norm: _BatchNorm) -> tuple[Tensor, Tensor] | None:
    """What a batch norm in training mode goes by: the camera of each image `(B,)`, and those that the global batch has.

    None where it has no tables, or nobody says which camera an image is of.
    """
    which, present = _which.get(), _present.get()
    if which is None or not has_table(norm, MEAN):
        return None
    if present is None:
        present = torch.arange(len(norm.get_buffer(MEAN)), device=which.device)
    return which, present


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


def by_camera_affine(part: nn.Module, out: Tensor, which: Tensor | None) -> Tensor:
    """What a part puts out, `(B, W)`, moved and scaled by each image's camera if it holds tables for that."""
    if which is None or not has_table(part, SHIFT):
        return out
    shift, scale = part.get_buffer(SHIFT), part.get_buffer(SCALE)
    shift = torch.cat([shift.new_zeros(1, shift.shape[1]), shift])[which + 1]
    scale = torch.cat([scale.new_ones(1, scale.shape[1]), scale])[which + 1]
    return ((out - shift) * scale).to(out.dtype)
