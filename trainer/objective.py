"""A stage's objective: model parts + losses, batch → (loss, report). One stage loop serves every objective."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from embae.datasets.batch import Batch
from embae.trainer import losses
from embae.trainer.distributed import gather_rows
from embae.trainer.parts import EmbAE, head_numbers
from embae.trainer.stage_schema import Loss


class Objective(nn.Module):
    """The weighted sum of a stage's losses over the global batch.

    Args:
        model: The parts.
        loss: The terms.
        accumulate: Parts that a rank's share of a batch comes in.
        cached: Whether batches hold backbone features instead of images.
    """

    def __init__(self, model: EmbAE, loss: Loss, *, accumulate: int = 1, cached: bool = False):
        super().__init__()
        self.model = model
        self._loss, self._accumulate, self._cached = loss, accumulate, cached
        if loss.reconstruction and model.uses["backbone"] == "train":
            # The target must not move with what is trained, or the features collapse onto each other.
            self.reference = copy.deepcopy(model.backbone).requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to call backward on, scaled for an engine that averages over ranks and parts, and a report.

        Report values are means over the global batch.
        """
        features = batch.inputs if self._cached else self.model.backbone(batch.inputs)
        z = self.model.embedding(features)
        world = dist.get_world_size() if dist.is_initialized() else 1
        total = z.new_zeros((), dtype=torch.float32)
        report: dict[str, Tensor] = {}
        if term := self._loss.triplet:
            identity = torch.from_numpy(batch.view.identity(batch.plan)).to(z.device)
            with torch.autocast(z.device.type, enabled=False):
                everyone = gather_rows(z if z.dtype == torch.float64 else z.float(), len(batch.plan))
                loss, seen = losses.MINING[term.mining](everyone, identity, term.margin)
            total = total + term.weight * world * loss
            report |= {"triplet": loss.detach(), **seen}
        if term_r := self._loss.reconstruction:
            target = self._target(batch, features)
            heads, present = heads_of(self.model, batch)
            v = self.model.nuisance(features, torch.from_numpy(heads).to(z.device), present)
            rebuilt = self.model.decoder(torch.cat([z, v], 1))
            with torch.autocast(z.device.type, enabled=False):
                loss = losses.reconstruction(rebuilt.to(target.dtype), target, len(batch.plan))
            total = total + term_r.weight * world * self._accumulate * loss
            report["reconstruction"] = _sum_over_ranks(loss.detach()) * self._accumulate
        report["loss"] = sum((term.weight * report[name] for name, term in self._loss if term), start=z.new_zeros(()))
        return total, report

    def _target(self, batch: Batch, features: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.reference(batch.inputs) if hasattr(self, "reference") else features.detach()
        return found if found.dtype == torch.float64 else found.float()

    def absent_parameters(self, batch: Batch) -> Iterator[nn.Parameter]:
        """Trained parameters of nuisance heads that no image of this global batch belongs to."""
        if self.model.uses["nuisance"] == "train":
            present = heads_of(self.model, batch)[1]
            for number, part in enumerate(self.model.nuisance.heads):
                if number not in present:
                    yield from part.parameters()


def heads_of(model: EmbAE, batch: Batch) -> tuple[np.ndarray, list[int]]:
    """The head of each of this rank's images `(N,)`, and the heads with images in the global batch, rising."""
    view, labels = batch.view, model.nuisance.labels
    every = head_numbers(labels, view.names, view.locate(batch.plan)[0], view.column("camid", batch.plan))
    return every[batch.slots], np.unique(every).tolist()


def _sum_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value := value.clone())
    return value
