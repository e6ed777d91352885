"""A stage's objective: model parts + losses, batch → (loss, report). One stage loop serves every objective."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.trainer.losses import functions as losses
from embae.trainer.losses.cluster_memory import ClusterMemory
from embae.trainer.losses.triplet import MINING
from embae.trainer.model.camera_tables import by_camera_affine, using_cameras, with_batch_cameras
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_numbers
from embae.trainer.recipe.losses import Loss
from embae.trainer.runtime.distributed import gather_rows, sum_over_ranks


class Objective(nn.Module):
    """The weighted sum of a stage's losses over the global batch.

    Args:
        model: The parts.
        loss: The terms.
        accumulate: Parts that a rank's share of a batch comes in.
        cached: Whether batches hold backbone features instead of images.
        batch_all_steps: Steps at the start that mine batch-all.
        standard: Mean and deviation of the features, two `(F,)`, where the standardised ones are rebuilt.
        memories: What embeddings are drawn to, by term.
    """

    def __init__(self, model: EmbAE, loss: Loss, *, accumulate: int = 1, cached: bool = False,
                 batch_all_steps: int = 0, standard: tuple[Tensor, Tensor] | None = None,
                 memories: Mapping[str, ClusterMemory] | None = None):
        super().__init__()
        self.model = model
        self.memories: Mapping[str, ClusterMemory] = nn.ModuleDict(memories or {})  # type: ignore[assignment]
        self._loss, self._accumulate, self._cached = loss, accumulate, cached
        self._batch_all_steps, self._standard = batch_all_steps, standard
        if loss.reconstruction and model.uses["backbone"] == "train":
            # The target must not move with what is trained, or the features collapse onto each other.
            self.reference = copy.deepcopy(model.backbone).requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    def forward(self, batch: Batch, terms: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to call backward on, scaled for an engine that averages over ranks and parts, and a report.

        Report values are means over the global batch.

        Args:
            batch: This rank's part.
            terms: Names of the terms to compute.
        """
        which, features, z = self._encode(batch)
        world = dist.get_world_size() if dist.is_initialized() else 1
        total = z.new_zeros((), dtype=torch.float32)
        report: dict[str, Tensor] = {}
        if "triplet" in terms:
            loss, seen = self._triplet(features if self.model.neck else z, batch)
            total = total + self._weight("triplet") * world * loss
            report |= {"triplet": loss.detach(), **seen}
        for name, memory in self.memories.items():
            if name in terms:
                with torch.autocast(z.device.type, enabled=False):
                    loss, near = memory(exact(z), batch)
                total = total + self._weight(name) * world * self._accumulate * loss
                found = sum_over_ranks(torch.stack([loss.detach(), near])) * self._accumulate
                report |= {name: found[0], f"near_{name}": found[1]}
        for name, term in (("identity", self._identity), ("reconstruction", self._reconstruction),
                           ("adversarial", self._adversarial)):
            if name in terms:  # each is this rank's part of a mean over the global batch
                loss = term(z, features, batch, which)
                total = total + self._weight(name) * world * self._accumulate * loss
                report[name] = sum_over_ranks(loss.detach()) * self._accumulate
        report["loss"] = sum((self._weight(name) * report[name] for name in terms), start=z.new_zeros(()))
        return total, report

    def _weight(self, term: str) -> float:
        return getattr(self._loss, term).weight

    def _triplet(self, z: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        term = self._loss.triplet
        assert term is not None
        identity = to_device(batch.view.identity(batch.plan), z.device)
        with torch.autocast(z.device.type, enabled=False):
            everyone = gather_rows(exact(z), len(batch.plan))
            mining = "batch-all" if batch.step < self._batch_all_steps else term.mining
            return MINING[mining](everyone, identity, term.margin)

    def _identity(self, z: Tensor, _: Tensor, batch: Batch, __: Tensor | None) -> Tensor:
        term = self._loss.identity
        assert term is not None
        scores = self.model.classifier(z)
        identity = to_device(batch.view.identity(batch.rows), z.device)
        with torch.autocast(z.device.type, enabled=False):
            return losses.cross_entropy(exact(scores), identity, len(batch.plan), term.smoothing)

    def _reconstruction(self, z: Tensor, features: Tensor, batch: Batch, which: Tensor | None) -> Tensor:
        target = self._target(batch, features, which)
        rebuilt = self.model.decoder(self._code(z, features, batch))
        with torch.autocast(z.device.type, enabled=False):
            return losses.reconstruction(rebuilt.to(target.dtype), target, len(batch.plan))

    def _adversarial(self, z: Tensor, features: Tensor, batch: Batch, _: Tensor | None) -> Tensor:
        # Its weights as constants: this turn moves the encoders alone.
        fixed = {name: value.detach() for name, value in self.model.discriminator.named_parameters()}
        logits = functional_call(self.model.discriminator, fixed, (self._code(z, features, batch),))
        with torch.autocast(z.device.type, enabled=False):
            return losses.real(exact(logits), len(batch.plan))

    def codes(self, batch: Batch) -> Tensor:
        """[z, v] of this rank's images: `(N, Z + V)`."""
        _, features, z = self._encode(batch)
        return self._code(z, features, batch)

    def _encode(self, batch: Batch) -> tuple[Tensor | None, Tensor, Tensor]:
        """The camera of each image in the model's list, its features, and its embedding."""
        which = self.model.cameras_of(batch)
        with with_batch_cameras(self.model.cameras_among(batch)):
            features = batch.inputs if self._cached else self.model.extract(batch.inputs, which)
            return which, features, self.model.embed(features, which)

    def _code(self, z: Tensor, features: Tensor, batch: Batch) -> Tensor:
        if self.model.uses["nuisance"] == "absent":
            return z
        heads, present = heads_of(self.model, batch)
        v = self.model.nuisance(features, heads, present)
        return torch.cat([z, v.to(z.dtype)], 1)

    def _target(self, batch: Batch, features: Tensor, which: Tensor | None) -> Tensor:
        with torch.no_grad():
            if not hasattr(self, "reference"):
                found = exact(features.detach())
                return found if self._standard is None else (found - self._standard[0]) / self._standard[1]
            with using_cameras(which):
                return exact(by_camera_affine(self.reference, self.reference(batch.inputs), which))

    def unmoved(self, batch: Batch, terms: Collection[str]) -> Iterator[nn.Parameter]:
        """Trained parameters that these terms leave alone on this batch.

        They are those of parts that none of the terms goes through, and of nuisance heads that no image of the global
        batch belongs to.
        """
        through = {**THROUGH, "embedding": TERMS - {"triplet"}} if self.model.neck else THROUGH
        for part, module in self.model.parts().items():
            if self.model.uses[part] == "train" and not through.get(part, TERMS) & set(terms):
                yield from module.parameters()
        if self.model.uses["nuisance"] == "train":
            present = heads_of(self.model, batch)[1]
            for number, head in enumerate(self.model.nuisance.heads):
                if number not in present:
                    yield from head.parameters()


TERMS = {"triplet", "identity", "memory", "proxies", "reconstruction", "adversarial"}
# The terms that go through a part; where it is not named, all do.
THROUGH = {"nuisance": {"reconstruction", "adversarial"}, "decoder": {"reconstruction"}, "classifier": {"identity"},
           "discriminator": set()}


def heads_of(model: EmbAE, batch: Batch) -> tuple[np.ndarray, list[int]]:
    """The head of each of this rank's images `(N,)`, and the heads with images in the global batch, rising."""
    view, labels = batch.view, model.nuisance.labels
    every = head_numbers(labels, view.names, view.locate(batch.plan)[0], view.column("camid", batch.plan))
    return every[batch.slots], np.unique(every).tolist()


def exact(values: Tensor) -> Tensor:
    """At least in single precision, for a loss under autocast."""
    return values if values.dtype == torch.float64 else values.float()
