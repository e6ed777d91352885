"""Batch norms get the statistics of the target's images (Li et al. 2016, AdaBN), of all or camera by camera."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.loading.batch import Batch
from embae.trainer.inference.calibration_prior import mix_with_prior
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import MEAN, VAR, set_table_rows
from embae.trainer.model.embae import EmbAE
from embae.trainer.runtime.distributed import World

ReadRows = Callable[[np.ndarray], Iterable[Batch]]
"""Reads rows of the target's view as batches on the rank's device."""


def embedding_norms(model: EmbAE) -> list[_BatchNorm]:
    """The batch norms between an image and its embedding."""
    return [module for part in (model.backbone, getattr(model, "embedding", None)) if part is not None
            for module in part.modules() if isinstance(module, _BatchNorm)]


def calibrate_batch_norms(model: EmbAE, groups: list[np.ndarray], cameras: Tensor | None, read: ReadRows,
                          world: World) -> None:
    """Gives batch norms the statistics of groups of images.

    They are mixed with the prior statistics afterwards: while images pass through, each batch norm normalises by their
    own statistics alone.

    Args:
        model: In eval mode; changed in place, in the same way on every rank.
        groups: The rows of each group of images.
        cameras: `(groups,)`, the camera of each group by its index in the model's tables; None for a single group,
            whose statistics become those that all cameras share.
        read: Reads rows of the view.
        world: This rank.
    """
    use_global_batch_norm(model, sync=False)
    norms = embedding_norms(model)
    shared = [(norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    tables = [[torch.stack([value] * len(groups)) for value in values] for values in shared]
    for number, rows in enumerate(groups):
        for norm, (mean, var) in zip(norms, shared, strict=True):  # forget the group before
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(var)
        # A rank computes whole groups, so that the result is the same for any world size.
        if number % world.world_size == world.rank:
            _average_statistics(model, norms, read(rows))
            for norm, (mean, var), (means, variances) in zip(norms, shared, tables, strict=True):
                means[number], variances[number] = mix_with_prior(
                    norm.get_buffer("running_mean"), norm.get_buffer("running_var"), len(rows), mean, var)
        for table in (value[number] for pair in tables for value in pair):
            dist.broadcast(table, number % world.world_size)
    for norm, momentum, count in zip(norms, momenta, tracked, strict=True):
        norm.momentum = momentum
        norm.get_buffer("num_batches_tracked").copy_(count)  # it would depend on the groups that this rank computed
    for norm, (mean, var), (means, variances) in zip(norms, shared, tables, strict=True):
        norm.get_buffer("running_mean").copy_(means[0] if cameras is None else mean)
        norm.get_buffer("running_var").copy_(variances[0] if cameras is None else var)
        if cameras is not None:
            set_table_rows(norm, MEAN, cameras, means, mean.expand(len(model.cameras), -1))
            set_table_rows(norm, VAR, cameras, variances, var.expand(len(model.cameras), -1))


def _average_statistics(model: EmbAE, norms: list[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Passes images through a model in training mode: its running statistics become their mean over the images."""
    for norm in norms:
        norm.train()
    images = 0
    for batch in batches:
        images += len(batch.rows)
        for norm in norms:
            norm.momentum = len(batch.rows) / images
        model(batch.inputs)
    for norm in norms:
        norm.eval()
