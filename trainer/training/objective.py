"""The objective of a stage: from a batch, by model and loss terms, to (loss, report)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.trainer.losses.precision import exact
from embae.trainer.losses.registry import Loss
from embae.trainer.losses.term import LossTerm, TermState
from embae.trainer.model.camera_tables import apply_camera_affine, using_cameras, with_batch_cameras
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_numbers
from embae.trainer.runtime.distributed import gather_rows, sum_over_ranks
from embae.trainer.training.schedule import steps
from embae.trainer.training.trainable import Trainable


@dataclass(frozen=True)
class BatchForm:
    """How the batches of a stage reach its objective.

    Attributes:
        accumulate: Parts of a rank's share of a batch.
        cached: Whether batches contain backbone features instead of images.
        feature_scale: Mean and deviation of the features, two `(F,)`, if standardised features are rebuilt.
        images: Number of images in an epoch.
        batch: Number of images in a global batch.
    """

    accumulate: int = 1
    cached: bool = False
    feature_scale: tuple[Tensor, Tensor] | None = None
    images: int = 1
    batch: int = 1


class Objective(Trainable):
    """The weighted sum of a stage's loss terms over the global batch.

    Args:
        model: The parts.
        loss: The terms.
        states: The states of terms that have one, by key.
        form: How batches come.

    Attributes:
        states: As above; their tensors are buffers of this module.
    """

    def __init__(self, model: EmbAE, loss: Loss, states: Mapping[str, TermState] | None = None,
                 form: BatchForm | None = None):
        super().__init__()
        self.model, self.states, self._form = model, dict(states or {}), form or BatchForm()
        self.state_buffers = nn.ModuleDict({name: state.buffers for name, state in self.states.items()})
        self.active = loss.terms()
        self._weights = {name: term.weight for name, term in loss.given()}
        self._terms = dict(sorted(loss.given(), key=lambda item: _order(item[1], item[0] in self.states)))
        if any(term.initial_features for term in self._terms.values()) and model.uses["backbone"] == "train":
            # The target must not move with what is trained, or the features collapse onto each other.
            self.reference = copy.deepcopy(model.backbone).requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = self.encode(batch)
        accumulate, world_size = self._form.accumulate, dist.get_world_size() if dist.is_initialized() else 1
        total = inputs.z.new_zeros((), dtype=torch.float32)
        report: dict[str, Tensor] = {}
        for name, term in self._terms.items():
            if name not in self.active:
                continue
            loss, metrics = term.compute(inputs, self.states.get(name))
            scale = term.weight * world_size
            if term.over_global_batch:  # the same on every rank: each passes on the gradient of its own rows
                total = total + scale * loss
                report |= {name: loss.detach(), **metrics}
            else:  # this rank's part of a mean
                total = total + scale * accumulate * loss
                means = sum_over_ranks(torch.stack([loss.detach(), *metrics.values()])) * accumulate
                report |= dict(zip([name, *metrics], means, strict=True))
        report["loss"] = sum((self._weights[name] * report[name] for name in self.active),
                             start=inputs.z.new_zeros(()))
        return total, report

    def encode(self, batch: Batch) -> EncodedBatch:
        """Images through backbone and embedding."""
        cameras = self.model.image_cameras(batch)
        with with_batch_cameras(self.model.batch_cameras(batch)):
            features = batch.inputs if self._form.cached else self.model.extract(batch.inputs, cameras)
            z = self.model.embed(features, cameras)
        return EncodedBatch(batch, features, z, cameras, self.model, getattr(self, "reference", None), self._form)

    def unmoved(self, batch: Batch) -> Iterator[nn.Parameter]:
        """Trained parameters that the active terms leave alone on this batch.

        They are those of parts that no active term moves, and of nuisance heads that no image of the global batch
        belongs to.
        """
        active = [self._terms[name] for name in self.active]
        for part, module in self.model.parts().items():
            passed = self.model.neck and part == "embedding"  # by terms that see the features in front of it
            if self.model.uses[part] == "train" and not any(
                term.moves(part) and not (passed and term.before_neck) for term in active
            ):
                yield from module.parameters()
        if self.model.uses["nuisance"] == "train":
            present = heads_of(self.model, batch)[1]
            for number, head in enumerate(self.model.nuisance.heads):
                if number not in present:
                    yield from head.parameters()


def _order(term: LossTerm, has_state: bool) -> tuple[bool, bool]:
    """The order in which terms are computed, and so the order in which gradients add up: it is part of the result."""
    return not term.over_global_batch, not has_state


@dataclass(frozen=True)
class EncodedBatch:
    """What loss terms see of a part of a batch: `LossInputs`.

    Attributes:
        batch: The part.
        features: `(N, F)` of the backbone.
        z: `(N, Z)` embeddings.
        cameras: `(N,)` the camera of each image in the list of a calibrated model.
        model: The model.
        reference: The backbone as it was at the start of the stage, if it trains and a term needs it.
        form: How batches come.
    """

    batch: Batch
    features: Tensor
    z: Tensor
    cameras: Tensor | None
    model: EmbAE
    reference: nn.Module | None
    form: BatchForm

    def steps(self, epochs: float) -> int:
        return steps(epochs, self.form.images, self.form.batch) if epochs else 0

    def identity(self) -> Tensor:
        return to_device(self.batch.view.identity(self.batch.rows), self.z.device)

    def global_batch(self) -> tuple[Tensor, Tensor]:
        compared = self.features if self.model.neck else self.z
        identity = to_device(self.batch.view.identity(self.batch.plan), compared.device)
        return gather_rows(exact(compared), len(self.batch.plan)), identity

    def class_scores(self) -> Tensor:
        return self.model.classifier(self.z)

    def rebuilt(self) -> Tensor:
        return self.model.decoder(self.code())

    def target_features(self) -> Tensor:
        with torch.no_grad():
            if self.reference is None:
                target, scale = exact(self.features.detach()), self.form.feature_scale
                return target if scale is None else (target - scale[0]) / scale[1]
            with using_cameras(self.cameras):
                features = self.reference(self.batch.inputs)
                return exact(apply_camera_affine(self.reference, features, self.cameras))

    def noise_scores(self) -> Tensor:
        discriminator = self.model.discriminator
        constants = {name: value.detach() for name, value in discriminator.named_parameters()}
        return functional_call(discriminator, constants, (self.code(),))

    def code(self) -> Tensor:
        """[z, v] of the images: `(N, Z + V)`; z alone without nuisance heads."""
        if self.model.uses["nuisance"] == "absent":
            return self.z
        heads, present = heads_of(self.model, self.batch)
        v = self.model.nuisance(self.features, heads, present)
        return torch.cat([self.z, v.to(self.z.dtype)], 1)


def heads_of(model: EmbAE, batch: Batch) -> tuple[np.ndarray, list[int]]:
    """The nuisance head of each of this rank's images `(N,)`, and the heads with images in the global batch, rising."""
    view, labels = batch.view, model.nuisance.labels
    every = head_numbers(labels, view.names, view.locate(batch.plan)[0], view.column("camid", batch.plan))
    return every[batch.slots], np.unique(every).tolist()
