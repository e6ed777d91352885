"""Calibration: statistics of the target's images put into a model, with nothing trained.

The controls that any adaptation has to beat, and a step that one may start from:

    batch-norm    the statistics of every batch norm are those of the target's images (Li et al. 2016, AdaBN)
    features      each camera's features are moved and scaled to the mean and deviation of all target images; where they
                  are the embedding themselves, to mean 0 and deviation 1
    embedding     each camera's embeddings are moved to a mean of zero

Batch norm over the whole target or camera by camera. `cameras.py` says where a model keeps such statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.augment import ImageSpec
from embae.datasets.plan import by_content, share
from embae.datasets.view import View
from embae.trainer.batchnorm import use_global_batch_norm
from embae.trainer.cameras import MEAN, SCALE, SHIFT, VAR, Camera, forget
from embae.trainer.distributed import World, gather_rows
from embae.trainer.errors import ExportError
from embae.trainer.evaluate import Reading
from embae.trainer.features import extract
from embae.trainer.parts import EmbAE
from embae.trainer.pass_keys import Calibrate


@torch.no_grad()
def calibrate(model: EmbAE, keys: Calibrate, view: View, spec: ImageSpec, world: World, reading: Reading) -> None:
    """Puts the statistics of a view's images into a model.

    Args:
        model: In eval mode, on the rank's device; changed in place, alike on every rank.
        keys: What, and whether camera by camera.
        view: The images; their order and labels play no part.
        spec: What the model takes.
        world: This rank.
        reading: How images are read, and how many at a time.

    Raises:
        ExportError: The model is calibrated on other cameras.
    """
    cameras = view.cameras()
    if keys.per == "camera":
        if model.cameras not in ([], cameras):
            raise ExportError(f"the model is calibrated on the cameras {_some(model.cameras)}, not on {_some(cameras)}")
        model.cameras = cameras
    rows = by_content(view)
    groups = _by_camera(view, rows, cameras) if keys.per == "camera" else [rows]
    # Of an earlier calibration, what is replaced or was taken behind what is.
    forget(model.embedding if keys.what == "embedding" else model, (SHIFT, SCALE))
    if keys.what == "batch-norm":
        forget(model, (MEAN, VAR))
        model.cameras = model.cameras if keys.per == "camera" else []
        _batch_norm(model, groups, view, spec, world, reading, by_camera=keys.per == "camera")
        return
    part = model.backbone if keys.what == "features" else model.embedding
    run = model.extract if keys.what == "features" else model.forward
    found = _put_out(run, model, rows, view, spec, world, reading)
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    own = [found[torch.from_numpy(place[group])] for group in groups]
    if keys.what == "embedding":
        _shift(part, own, found, found.new_zeros(found.shape[1]), None)
    elif model.uses["embedding"] == "absent":
        _shift(part, own, found, found.new_zeros(found.shape[1]), found.new_ones(found.shape[1]))
    else:  # an embedding follows that knows features of this size
        _shift(part, own, found, found.mean(0), found.std(0, correction=0))


def _by_camera(view: View, rows: np.ndarray, cameras: list[Camera]) -> list[np.ndarray]:
    camid = view.column("camid", rows)
    return [rows[camid == number] for _, number in cameras]


def _batch_norm(model: EmbAE, groups: list[np.ndarray], view: View, spec: ImageSpec, world: World, reading: Reading, *,
                by_camera: bool) -> None:
    use_global_batch_norm(model, sync=False)
    norms = [module for part in (model.backbone, getattr(model, "embedding", None)) if part is not None
             for module in part.modules() if isinstance(module, _BatchNorm)]
    shared = [(norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone(), norm.momentum)
              for norm in norms]
    tracked = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    tables = [[torch.stack([value] * len(groups)) for value in values[:2]] for values in shared]
    for number, group in enumerate(groups):
        for norm, (mean, var, _) in zip(norms, shared, strict=True):  # nothing of the camera before is left
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(var)
        if number % world.world_size == world.rank:  # a rank takes whole cameras: the same for any world size
            _see(model, norms, group, view, spec, world, reading)
            for norm, (means, variances) in zip(norms, tables, strict=True):
                means[number], variances[number] = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        for table in (value[number] for both in tables for value in both):
            dist.broadcast(table, number % world.world_size)
    for norm, (mean, var, momentum), count, (means, variances) in zip(norms, shared, tracked, tables, strict=True):
        norm.momentum = momentum
        norm.get_buffer("num_batches_tracked").copy_(count)  # else it says how many cameras this rank took
        norm.get_buffer("running_mean").copy_(mean if by_camera else means[0])
        norm.get_buffer("running_var").copy_(var if by_camera else variances[0])
        if by_camera:
            norm.register_buffer(MEAN, means)
            norm.register_buffer(VAR, variances)


def _see(model: EmbAE, norms: list[_BatchNorm], rows: np.ndarray, view: View, spec: ImageSpec, world: World,
         reading: Reading) -> None:
    """Shows images to a model in training mode, so that its running statistics become their mean over the images."""
    for norm in norms:
        norm.train()
    seen = 0
    for batch in extract(view, rows, spec, world.device, loader=reading.loader, threads=reading.threads,
                         size=reading.batch):
        seen += len(batch.rows)
        for norm in norms:
            norm.momentum = len(batch.rows) / seen
        model(batch.inputs)
    for norm in norms:
        norm.eval()


def _put_out(run: Callable[[Tensor, Tensor | None], Tensor], model: EmbAE, rows: np.ndarray, view: View,
             spec: ImageSpec, world: World, reading: Reading) -> Tensor:
    """What a model makes of a view's rows, in their order, on every rank: `(N, W)` in double precision."""
    own = rows[share(len(rows), world.rank, world.world_size)]
    found = [run(batch.inputs, model.cameras_of(batch)).double() for batch in
             extract(view, own, spec, world.device, loader=reading.loader, threads=reading.threads, size=reading.batch)]
    width = model.z if run == model.forward else model.features
    mine = torch.cat(found) if found else torch.empty(0, width, dtype=torch.float64, device=world.device)
    return gather_rows(mine, len(rows))


def _shift(part: nn.Module, groups: list[Tensor], every: Tensor, mean: Tensor, spread: Tensor | None) -> None:
    """Registers what brings each group's values to a mean and, if one is given, to a deviation."""
    shifts, scales, usual = [], [], every.std(0, correction=0)
    for group in groups:
        factor = torch.ones_like(mean)
        if spread is not None:
            own = group.std(0, correction=0)
            # What hardly varies, as after a ReLU that seldom fires or on a camera of one image, is only moved: its
            # noise would become as loud as the rest.
            varies = (own > 0.01 * usual) & (own > 1e-6) & (len(group) > 1)
            factor = torch.where(varies, spread / own.clamp(min=1e-6), factor)
        shifts.append(group.mean(0) - mean / factor)
        scales.append(factor)
    part.register_buffer(SHIFT, torch.stack(shifts).float())
    part.register_buffer(SCALE, torch.stack(scales).float())


def _some(cameras: list[Camera]) -> str:
    said = [f"{camid} of {dataset}" for dataset, camid in cameras[:5]]
    return ", ".join(said) + ", …" * (len(cameras) > 5)
