"""Calibration: statistics of the target's images are put into a model; nothing is trained.

Calibrated models are the controls that any adaptation has to beat, and an adaptation may start from one:

    batch-norm    the statistics of every batch norm are those of the target's images (`batch_norm_calibration.py`)
    features      each camera's features are moved and scaled to the mean and deviation of all target images; if the
                  features are the embedding themselves, to mean 0 and deviation 1
    embedding     each camera's embeddings are moved to a mean of zero

Batch norms are calibrated over the whole target or camera by camera. `camera_tables.py` says where a model stores such
statistics, and `calibration_prior.py` how statistics of few images are mixed with others.

A model may be calibrated camera by camera as cameras arrive: its statistics of other cameras stay bit for bit the same,
and the cameras of the view are added, or replaced if the model has them already. Batch norms of each camera depend on
its own images and the shared statistics alone, so that the order in which cameras arrive does not matter; so does the
mean of embeddings, on its own images. Only features share a result, the mean and deviation of all images: those of the
first calibration are stored, and cameras that are added later are mixed with them and, if an embedding follows, moved
to them too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from embae.datasets.loading.batch import Batch
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.sampler import share
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.inference.batch_norm_calibration import ReadRows, calibrate_batch_norms, embedding_norms
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.calibration_prior import mix_with_prior
from embae.trainer.inference.options import Inference
from embae.trainer.model.camera_tables import (
    COMMON,
    SCALE,
    SHIFT,
    extend_tables,
    has_table,
    remove_tables,
    reorder_tables,
    set_table_rows,
)
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.recipe.calibration import Calibrate
from embae.trainer.runtime.distributed import World, gather_rows

MIN_DEVIATION = 1e-6  # a feature that deviates less over all cameras is moved and not scaled


@torch.no_grad()
def calibrate(model: EmbAE, keys: Calibrate, view: View, inference: Inference) -> None:
    """Puts the statistics of a view's images into a model.

    Args:
        model: In eval mode, on the rank's device; changed in place, in the same way on every rank.
        keys: What is calibrated, and whether camera by camera.
        view: The images; their order and labels do not matter.
        inference: How images go through the model; the test-time augmentation and the cache are not used.

    Raises:
        WeightsError: The model has no batch norm to calibrate, or does not store the mean and deviation that the
            features of earlier cameras were moved to.
    """
    rows, world = order_by_content(view), inference.world
    read = partial(read_batches, view, spec=inference.spec, reading=inference.reading, device=world.device)
    if keys.what == "batch-norm" and not embedding_norms(model):
        raise WeightsError(
            "the model has no batch norm, so none can have a camera's statistics; calibrate its features"
        )
    if keys.per == "dataset":
        remove_tables(model)
        model.known_cameras = KnownCameras()
        calibrate_batch_norms(model, [rows], None, read, world)
        return
    cameras = _add_cameras(model, view)
    camera_of_row = model.known_cameras.indices(view, rows)
    groups = [rows[camera_of_row == camera] for camera in cameras.tolist()]
    # An earlier calibration of these cameras is undone: of the same part, and of parts that depend on its output.
    for name, part in model.parts().items():
        if name == "embedding" or keys.what != "embedding":
            _reset_affine(part, cameras)
    if keys.what == "batch-norm":
        calibrate_batch_norms(model, groups, cameras, read, world)
        return
    part, width, compute = ((model.backbone, model.features, model.extract) if keys.what == "features" else
                            (model.embedding, model.z, model.encode))
    outputs = _compute_rows(lambda batch: compute(batch.inputs, model.image_cameras(batch)), width, rows, read, world)
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    by_camera = [outputs[torch.from_numpy(place[group])] for group in groups]
    zero, one = torch.zeros_like(outputs[0]), torch.ones_like(outputs[0])
    if keys.what == "embedding":
        _set_affine(model, part, cameras, [group.mean(0) for group in by_camera], [one] * len(by_camera))
        return
    common = _common_mean_std(part, outputs.mean(0), outputs.std(0, correction=0))
    # An embedding that follows was trained on features of the common mean and deviation.
    target = (zero, one) if model.uses["embedding"] == "absent" else common
    affines = [_affine(group, common, target) for group in by_camera]
    _set_affine(model, part, cameras, [shift for shift, _ in affines], [scale for _, scale in affines])


def _add_cameras(model: EmbAE, view: View) -> Tensor:
    """Gives tables a row for each of a view's cameras, sorted, new ones with the statistics that unknown cameras use.

    Returns:
        The index of each of the view's cameras in the tables.
    """
    extended = model.known_cameras.extended_by(view)
    unsorted, cameras = list(extended.cameras), sorted(extended.cameras)
    order = torch.tensor([unsorted.index(camera) for camera in cameras])
    for part in model.parts().values():
        extend_tables(part, len(cameras), trains=False)
        reorder_tables(part, order)
    model.known_cameras = KnownCameras(cameras, extended.names)
    return torch.tensor([model.known_cameras.index_of(camera, view.camera_names.get(camera))
                         for camera in view.cameras()])


def _reset_affine(part: nn.Module, cameras: Tensor) -> None:
    """Removes the shift and scale of some cameras from a part, and the tables too if no other camera has any."""
    if not has_table(part, SHIFT):
        return
    shift, scale = part.get_buffer(SHIFT), part.get_buffer(SCALE)
    shift[cameras.to(shift.device)], scale[cameras.to(scale.device)] = 0.0, 1.0
    if not shift.any() and (scale == 1.0).all():
        remove_tables(part, (SHIFT, SCALE, COMMON))


def _common_mean_std(part: nn.Module, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over all cameras: those of the first calibration, or else these, which are then stored."""
    if not has_table(part, SHIFT):
        part.register_buffer(COMMON, torch.stack([mean, std]).float())
    elif not has_table(part, COMMON):
        raise WeightsError("the features of other cameras are calibrated, and the export, which an earlier version "
                           "wrote, does not store the mean and deviation that they were moved to; calibrate all "
                           "cameras again, together")
    mean, std = part.get_buffer(COMMON).double()
    return mean, std


def _compute_rows(compute: Callable[[Batch], Tensor], width: int, rows: np.ndarray, read: ReadRows,
                  world: World) -> Tensor:
    """The result of a function of batches for each row, in their order: `(N, width)` float64, on every rank."""
    batches = read(rows[share(len(rows), world.rank, world.world_size)])
    computed = [compute(batch).double() for batch in batches]
    local = torch.cat(computed) if computed else torch.empty(0, width, dtype=torch.float64, device=world.device)
    return gather_rows(local, len(rows))


def _affine(group: Tensor, common: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Shift and scale that give a camera's features `(n, F)`, mixed with the common ones, a mean and deviation."""
    mean, var = mix_with_prior(group.mean(0), group.var(0, correction=0), len(group), common[0], common[1] ** 2)
    scale = torch.where(common[1] > MIN_DEVIATION, target[1] / var.sqrt().clamp(min=MIN_DEVIATION), 1.0)
    return mean - target[0] / scale, scale


def _set_affine(model: EmbAE, part: nn.Module, cameras: Tensor, shifts: list[Tensor], scales: list[Tensor]) -> None:
    """Sets the shift and scale of cameras in the tables of a part."""
    shift, scale = torch.stack(shifts), torch.stack(scales)
    table = shift.float().new_zeros(len(model.cameras), shift.shape[1])
    set_table_rows(part, SHIFT, cameras, shift, table)
    set_table_rows(part, SCALE, cameras, scale, table + 1)
