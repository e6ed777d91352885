"""Statistics by camera: each image passes batch norms, features and embedding with the numbers of its own camera.

A model that is *calibrated* on cameras has these buffers in addition to its shared statistics, with one row per camera:

    <batch norm>.camera_mean, .camera_var              `(C, channels)`, in place of running_mean and running_var
    backbone|embedding.camera_shift, .camera_scale     `(C, width)`: the output of the part, minus shift, times scale
    backbone.camera_common                             `(2, width)`: mean and deviation over all cameras, with which
                                                       those of each camera are mixed

An image of an unknown camera uses the shared statistics. The tables of features and embeddings are used in eval mode
alone; a batch norm with tables in training mode normalises by camera and updates them (`camera_batch_norm.py`).
`known_cameras.py` decides which of the model's cameras an image belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MEAN, VAR, SHIFT, SCALE, COMMON = TABLES = ("camera_mean", "camera_var", "camera_shift", "camera_scale",
                                            "camera_common")

# Batch norms lie inside timm's networks, which pass on nothing but the images, so the cameras reach them by context. A
# context variable belongs to the calling thread and is reset at the end of its `with` block: no state remains here.
_image_cameras: ContextVar[Tensor | None] = ContextVar("cameras of the images in the network", default=None)
_batch_cameras: ContextVar[Tensor | None] = ContextVar("cameras of the global batch", default=None)


@contextmanager
def using_cameras(cameras: Tensor | None) -> Iterator[None]:
    """Sets the camera of each image of a forward pass: `(B,)`, the index in the tables, −1 for an unknown camera."""
    token = _image_cameras.set(cameras)
    try:
        yield
    finally:
        _image_cameras.reset(token)


@contextmanager
def with_batch_cameras(cameras: Tensor | None) -> Iterator[None]:
    """Sets the cameras with images in the global batch: `(K,)`, ascending; without this, all cameras of the model."""
    token = _batch_cameras.set(cameras)
    try:
        yield
    finally:
        _batch_cameras.reset(token)


@dataclass(frozen=True)
class TrainingCameras:
    """The cameras by which a batch norm normalises in training mode.

    Attributes:
        of_image: `(B,)`, the camera of each image of this rank.
        in_batch: `(K,)`, the cameras with images in the global batch, ascending; the same on every rank.
    """

    of_image: Tensor
    in_batch: Tensor


def has_table(module: nn.Module, name: str) -> bool:
    """Whether a module has this table."""
    return name in module._buffers


def add_tables(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Adds the tables that a state dict has and the module does not have; returns whether there were any."""
    added = False
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        if name in TABLES:
            try:
                owner = module.get_submodule(path)
            except AttributeError:
                continue  # loading the state dict will report it
            if not has_table(owner, name):
                owner.register_buffer(name, torch.empty_like(value))
                added = True
    return added


def remove_tables(module: nn.Module, names: Collection[str] = TABLES) -> None:
    """Removes the tables of these names from a module and all modules below it."""
    for child in module.modules():
        for name in names:
            child._buffers.pop(name, None)


def extend_tables(part: nn.Module, cameras: int, *, trains: bool) -> None:
    """Extends the tables of a part to a number of cameras; new rows have the same effect as the shared statistics.

    Args:
        part: A part; its existing rows stay unchanged.
        cameras: The number of rows that each table gets.
        trains: Whether its batch norms normalise by camera in training, and so get tables if they have none.
    """
    for module in part.modules():
        if isinstance(module, _BatchNorm) and trains and not has_table(module, MEAN):
            for name, shared in ((MEAN, module.running_mean), (VAR, module.running_var)):
                assert shared is not None
                module.register_buffer(name, shared.new_empty(0, len(shared)))
        for name in filter(module._buffers.__contains__, (MEAN, VAR, SHIFT, SCALE)):
            table = module.get_buffer(name)
            new_rows = table.new_zeros(cameras - len(table), table.shape[1])
            if name == SCALE:
                new_rows += 1
            elif name in (MEAN, VAR):
                new_rows += module.get_buffer("running_mean" if name == MEAN else "running_var")
            module.register_buffer(name, torch.cat([table, new_rows]))


def reorder_tables(part: nn.Module, order: Tensor) -> None:
    """Reorders the rows of all tables by camera of a part: row i becomes the former row `order[i]`."""
    for module in part.modules():
        for name in filter(module._buffers.__contains__, (MEAN, VAR, SHIFT, SCALE)):
            table = module.get_buffer(name)
            module.register_buffer(name, table[order.to(table.device)])


def set_table_rows(module: nn.Module, name: str, cameras: Tensor, rows: Tensor, initial: Tensor) -> None:
    """Sets the rows of some cameras in a table; a table that does not exist yet starts from `initial`.

    Args:
        module: The owner of the table.
        name: Name of the table.
        cameras: `(K,)`, the indices of the cameras.
        rows: `(K, width)`, their rows.
        initial: `(C, width)`, the values that have the same effect as the shared statistics.
    """
    table = module.get_buffer(name) if has_table(module, name) else initial.clone()
    table[cameras.to(table.device)] = rows.to(table)
    module.register_buffer(name, table)


def without_tables(state: Mapping[str, Tensor], *, keep_batch_norm: bool) -> dict[str, Tensor]:
    """The state of a part without the tables that become outdated when the part is trained.

    Args:
        state: By the part's own names.
        keep_batch_norm: Whether the tables of its batch norms stay valid: its batch norms keep their statistics in
            training, or update them.
    """
    outdated = (SHIFT, SCALE, COMMON) if keep_batch_norm else TABLES
    return {key: value for key, value in state.items() if key.rpartition(".")[2] not in outdated}


def training_cameras(norm: _BatchNorm) -> TrainingCameras | None:
    """The cameras by which a batch norm in training mode normalises; None if it has no tables or no cameras are set."""
    of_image, in_batch = _image_cameras.get(), _batch_cameras.get()
    if of_image is None or not has_table(norm, MEAN):
        return None
    if in_batch is None:
        in_batch = torch.arange(len(norm.get_buffer(MEAN)), device=of_image.device)
    return TrainingCameras(of_image, in_batch)


def batch_norm_by_camera(norm: _BatchNorm, x: Tensor) -> Tensor | None:
    """A batch norm in eval mode by each image's camera: `(B, C, …)`; None if it has no tables or no cameras are set."""
    cameras = _image_cameras.get()
    if cameras is None or not has_table(norm, MEAN):
        return None
    assert norm.running_mean is not None and norm.running_var is not None
    mean = torch.cat([norm.running_mean[None], norm.get_buffer(MEAN)])[cameras + 1]  # row 0: unknown cameras
    var = torch.cat([norm.running_var[None], norm.get_buffer(VAR)])[cameras + 1]
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    shift = norm.bias - mean * scale
    shape = *scale.shape, *[1] * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


def apply_camera_affine(part: nn.Module, out: Tensor, cameras: Tensor | None) -> Tensor:
    """The output of a part, `(B, W)`, shifted and scaled by each image's camera if the part has tables for that."""
    if cameras is None or not has_table(part, SHIFT):
        return out
    shift, scale = part.get_buffer(SHIFT), part.get_buffer(SCALE)
    shift = torch.cat([shift.new_zeros(1, shift.shape[1]), shift])[cameras + 1]
    scale = torch.cat([scale.new_ones(1, scale.shape[1]), scale])[cameras + 1]
    return ((out - shift) * scale).to(out.dtype)
