"""Calibration: statistics of the target's images put into a model, with nothing trained.

The controls that any adaptation has to beat, and a step that one may start from:

    batch-norm    the statistics of every batch norm are those of the target's images (Li et al. 2016, AdaBN)
    features      each camera's features are moved and scaled to the mean and deviation of all target images; where they
                  are the embedding themselves, to mean 0 and deviation 1
    embedding     each camera's embeddings are moved to a mean of zero

Batch norm over the whole target or camera by camera. `cameras.py` says where a model keeps such statistics.

Statistics of n images, of batch norm and of features, are mixed with N = 32 imagined images that have the usual ones,
of weight N/(N + n) (Schneider et al. 2020, arXiv 2006.16971, eq. 2): those that the model shares, and of features those
of all images. Few images would otherwise do harm. Unlike there the variance is that of the mixture, with what the means
differ by. Batch norms are mixed afterwards: while images pass, each normalises by their own statistics alone.

Camera by camera a model may be calibrated as cameras come: what it holds of others stays bit for bit, and those given
are added, or replaced where it has them already. Batch norm of each camera is of its own images and the shared
statistics alone, so that the order in which cameras come plays no part; so is the mean of embeddings, of its images.
Only features share what the calibration finds, the mean and deviation of all of its images: those of the first are
kept, and cameras added later are mixed with them and, under an embedding, move to them too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.sampler import share
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.inference.batches import read_batches
from embae.trainer.inference.options import Inference
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import COMMON, MEAN, SCALE, SHIFT, VAR, fill_up, forget, has_table
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.recipe.calibration import Calibrate
from embae.trainer.runtime.distributed import gather_rows

PRIOR = 32
"""Images that the usual statistics count as: Rank-1 on the drawn campus, by images of each camera, means of 3 draws

    PRIOR      8     16     32     64    128    all (402 to 450)
        0  0.061  0.242  0.332  0.407  0.467  0.540
       16  0.343  0.434  0.422                0.543
       32  0.363  0.442  0.462  0.468  0.481  0.554
       64  0.346

Uncalibrated 0.306. Without what the means differ by in the variance, 32 gives 0.345 with 8 images, 0.443 with 32, 0.534
with all. Batch norms that normalise by mixed statistics while images pass: 0.169 with 8 images, against 0.346 of those
that are mixed afterwards (PRIOR 16, 2 draws, without that term).
"""


@torch.no_grad()
def calibrate(model: EmbAE, keys: Calibrate, view: View, inference: Inference) -> None:
    """Puts the statistics of a view's images into a model.

    Args:
        model: In eval mode, on the rank's device; changed in place, alike on every rank.
        keys: What, and whether camera by camera.
        view: The images; their order and labels play no part.
        inference: How images go through the model; the test-time augmentation and the cache play no part.

    Raises:
        ExportError: There is no batch norm to calibrate, or what earlier cameras' features were moved to is not known.
    """
    rows = order_by_content(view)
    if keys.what == "batch-norm" and not _norms(model):
        raise WeightsError(
            "the model has no batch norm, so none can have a camera's statistics; calibrate its features"
        )
    if keys.per == "dataset":
        forget(model)
        model.known = KnownCameras()
        _batch_norm(model, [rows], None, view, inference)
        return
    at = _admit(model, view)
    which = model.known.numbers(view, rows)
    groups = [rows[which == number] for number in at.tolist()]
    # Of an earlier calibration of these cameras, what is replaced or was taken behind what is.
    for name, behind in model.parts().items():
        if name == "embedding" or keys.what != "embedding":
            _leave_alone(behind, at)
    if keys.what == "batch-norm":
        _batch_norm(model, groups, at, view, inference)
        return
    part = model.backbone if keys.what == "features" else model.embedding
    run = model.extract if keys.what == "features" else model.encode
    found = _put_out(run, model, rows, view, inference)
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    own = [found[torch.from_numpy(place[group])] for group in groups]
    zero, one = torch.zeros_like(found[0]), torch.ones_like(found[0])
    if keys.what == "embedding":
        _move(model, part, at, [group.mean(0) for group in own], [one] * len(own))
        return
    common = _common(part, found.mean(0), found.std(0, correction=0))
    # What an embedding that follows knows are features of this size.
    to = (zero, one) if model.uses["embedding"] == "absent" else common
    _standardise(model, part, at, own, common, to)


def _admit(model: EmbAE, view: View) -> Tensor:
    """Gives tables a row for each of a view's cameras, a new one doing as unknown cameras do; returns which."""
    joined = model.known.joined(view)
    known, every = list(joined.cameras), sorted(joined.cameras)
    place = torch.tensor([known.index(camera) for camera in every])
    for part in model.parts().values():
        fill_up(part, len(known), trains=False)
    for module in model.modules():
        for name in (MEAN, VAR, SHIFT, SCALE):
            if has_table(module, name):
                table = module.get_buffer(name)
                module.register_buffer(name, table[place.to(table.device)])
    model.known = KnownCameras(every, joined.names)
    return torch.tensor([model.known.index_of(camera, view.camera_names.get(camera)) for camera in view.cameras()])


def _leave_alone(part: nn.Module, at: Tensor) -> None:
    """Takes back what moves and scales a part's values for some cameras; for all, if no others are moved."""
    if not has_table(part, SHIFT):
        return
    shift, scale = part.get_buffer(SHIFT), part.get_buffer(SCALE)
    shift[at.to(shift.device)], scale[at.to(scale.device)] = 0.0, 1.0
    if not shift.any() and (scale == 1.0).all():
        forget(part, (SHIFT, SCALE, COMMON))


def _common(part: nn.Module, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of all cameras: those that others were mixed with before, else these, which are kept."""
    if not has_table(part, SHIFT):
        part.register_buffer(COMMON, torch.stack([mean, spread]).float())
    elif not has_table(part, COMMON):
        raise WeightsError("the features of other cameras are calibrated, and the export, of an earlier version, does "
                          "not keep what they were moved to; calibrate all cameras anew, together")
    mean, spread = part.get_buffer(COMMON).double()
    return mean, spread


def _norms(model: EmbAE) -> list[_BatchNorm]:
    """The batch norms that images go through to their embedding."""
    return [module for part in (model.backbone, getattr(model, "embedding", None)) if part is not None
            for module in part.modules() if isinstance(module, _BatchNorm)]


def _batch_norm(model: EmbAE, groups: list[np.ndarray], at: Tensor | None, view: View, inference: Inference) -> None:
    """Gives batch norms the statistics of groups of images: of the cameras at these rows, or the shared ones."""
    world = inference.world
    use_global_batch_norm(model, sync=False)
    norms = _norms(model)
    shared = [(norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone(), norm.momentum)
              for norm in norms]
    tracked = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    tables = [[torch.stack([value] * len(groups)) for value in values[:2]] for values in shared]
    for number, group in enumerate(groups):
        for norm, (mean, var, _) in zip(norms, shared, strict=True):  # nothing of the camera before is left
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(var)
        if number % world.world_size == world.rank:  # a rank takes whole cameras: the same for any world size
            _see(model, norms, group, view, inference)
            for norm, (mean, var, _), (means, variances) in zip(norms, shared, tables, strict=True):
                means[number], variances[number] = _shrink(norm.get_buffer("running_mean"),
                                                           norm.get_buffer("running_var"), len(group), mean, var)
        for table in (value[number] for both in tables for value in both):
            dist.broadcast(table, number % world.world_size)
    for norm, (mean, var, momentum), count, (means, variances) in zip(norms, shared, tracked, tables, strict=True):
        norm.momentum = momentum
        norm.get_buffer("num_batches_tracked").copy_(count)  # else it says how many cameras this rank took
        norm.get_buffer("running_mean").copy_(means[0] if at is None else mean)
        norm.get_buffer("running_var").copy_(variances[0] if at is None else var)
        if at is not None:
            _put(norm, MEAN, model, at, means, mean)
            _put(norm, VAR, model, at, variances, var)


def _shrink(mean: Tensor, var: Tensor, images: int, usual_mean: Tensor, usual_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of so many images together with `PRIOR` others of the usual mean and variance."""
    own = images / (PRIOR + images)
    between = own * (1 - own) * (mean - usual_mean) ** 2
    return torch.lerp(usual_mean, mean, own), torch.lerp(usual_var, var, own) + between


def _put(module: nn.Module, name: str, model: EmbAE, at: Tensor, rows: Tensor, usual: Tensor) -> None:
    """Puts rows of some cameras into a table; one that is new has what unknown cameras go through for the others."""
    table = module.get_buffer(name) if has_table(module, name) else usual.expand(len(model.known.cameras), -1).clone()
    table[at.to(table.device)] = rows.to(table)
    module.register_buffer(name, table)


def _see(model: EmbAE, norms: list[_BatchNorm], rows: np.ndarray, view: View, inference: Inference) -> None:
    """Shows images to a model in training mode, so that its running statistics become their mean over the images."""
    for norm in norms:
        norm.train()
    seen = 0
    for batch in read_batches(view, rows, inference.spec, inference.reading, inference.world.device):
        seen += len(batch.rows)
        for norm in norms:
            norm.momentum = len(batch.rows) / seen
        model(batch.inputs)
    for norm in norms:
        norm.eval()


def _put_out(run: Callable[[Tensor, Tensor | None], Tensor], model: EmbAE, rows: np.ndarray, view: View,
             inference: Inference) -> Tensor:
    """What a model makes of a view's rows, in their order, on every rank: `(N, W)` in double precision."""
    world = inference.world
    own = rows[share(len(rows), world.rank, world.world_size)]
    found = [
        run(batch.inputs, model.cameras_of(batch)).double()
        for batch in read_batches(view, own, inference.spec, inference.reading, world.device)
    ]
    width = model.z if run == model.encode else model.features
    mine = torch.cat(found) if found else torch.empty(0, width, dtype=torch.float64, device=world.device)
    return gather_rows(mine, len(rows))


def _standardise(model: EmbAE, part: nn.Module, at: Tensor, groups: list[Tensor], common: tuple[Tensor, Tensor],
                 to: tuple[Tensor, Tensor]) -> None:
    """Puts into tables what brings each group's values, of common mean and deviation, to another mean and deviation."""
    shifts, scales = [], []
    for group in groups:
        mean, var = _shrink(group.mean(0), group.var(0, correction=0), len(group), common[0], common[1] ** 2)
        # What did not vary on the cameras that all are mixed with is only moved.
        factor = torch.where(common[1] > 1e-6, to[1] / var.sqrt().clamp(min=1e-6), 1.0)
        shifts.append(mean - to[0] / factor)
        scales.append(factor)
    _move(model, part, at, shifts, scales)


def _move(model: EmbAE, part: nn.Module, at: Tensor, shifts: list[Tensor], scales: list[Tensor]) -> None:
    """Puts into tables what moves and then scales values of the cameras at these rows."""
    _put(part, SHIFT, model, at, torch.stack(shifts), torch.zeros_like(shifts[0]).float())
    _put(part, SCALE, model, at, torch.stack(scales), torch.ones_like(scales[0]).float())
