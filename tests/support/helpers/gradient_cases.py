"""Stages whose step on several ranks is compared with a step in one process that is written out."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from embae.datasets.loading.batch import Batch
from embae.datasets.sampling.sampler import share
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.embae import EmbAE
from embae.trainer.recipe.model import Model
from embae.trainer.runtime.distributed import World
from embae.trainer.training.objective import BatchForm, Objective
from helpers.ranks import on_ranks
from helpers.toy_models import (
    KEYS,
    NECK,
    RECONSTRUCTION,
    TRIPLET,
    ToyView,
    heads,
    images,
    model,
    parts_in,
    share_of,
    stage,
)

RATE = 2.0**20  # the step is so long that what it started from does not round it


@dataclass(frozen=True)
class Case:
    """A stage and the global batch that it takes one step on.

    Attributes:
        parts: What trains.
        loss: The recipe's key.
        plan: Rows of the global batch.
        accumulate: Parts of each rank's share.
        zero: ZeRO stages.
        double: Whether to compute in double precision, which DeepSpeed does not: then without it.
        terms: Whose turn it is; None for all.
        of: The model.
        seed: Of its weights.
    """

    parts: dict[str, str]
    loss: dict[str, Any]
    plan: np.ndarray
    accumulate: int = 1
    zero: tuple[int, ...] = (0, 1, 2, 3)
    double: bool = False
    terms: tuple[str, ...] | None = None
    of: Model = KEYS
    seed: int = 0

    @property
    def labelled(self) -> bool:
        return bool({"triplet", "identity", "circle"} & set(self.loss))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


# Camera 0 is on every rank, 1 only on the first, 2 has a single image, 3 none in the batch, 4 is on the last ranks. A
# part holds several rows of the others: of two rows alone, batch norm's gradient is the small difference of large ones,
# and plain torch in single precision is farther from double precision than the limit below.
CAMID = [0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 0, 0, 0, 4, 0, 4, 4, 0, 4, 4, 4, 0, 4, 0, 4, 4, 0, 3, 3, 3]


LABELLED = ToyView(pid=np.repeat(range(4), 4), camid=np.tile([0, 1, 2], 6)[:16])


PLAIN = ToyView(pid=[-1] * 30, camid=CAMID)


IDENTITIES = np.random.default_rng(5).permutation(16)  # P·K = 16 rows: 5, 5 and 6 on three ranks


FIRST = np.arange(27)  # 6, 7, 7 and 7 on four ranks


HEADS = parts_in("frozen", "train", "train", "train")


CASES = {
    "triplet": Case(parts_in("train", "train"), TRIPLET, IDENTITIES),
    "triplet in double": Case(parts_in("train", "train"), TRIPLET, IDENTITIES, zero=(0,), double=True),
    "hinge": Case(parts_in("train", "train"), {"triplet": {"margin": 0.3, "weight": 2.0}}, IDENTITIES, zero=(0,)),
    "circle": Case(parts_in("train", "train"), {"circle": {"gamma": 16}}, IDENTITIES),
    "circle in double": Case(
        parts_in("train", "train"), {"circle": {"gamma": 16, "weight": 2.0}}, IDENTITIES, zero=(0,), double=True),
    "reconstruction": Case(HEADS, RECONSTRUCTION, FIRST),
    "reconstruction in two parts": Case(HEADS, RECONSTRUCTION, FIRST, accumulate=2, zero=(0, 1, 3)),
    "reconstruction in double": Case(HEADS, RECONSTRUCTION, FIRST, accumulate=2, zero=(0,), double=True),
    "embedding of the target": Case(
        parts_in("frozen", "train", "frozen", "train"), RECONSTRUCTION, FIRST, accumulate=2
    ),
    "both losses": Case(parts_in("train", "train", "train", "train"), {**TRIPLET, **RECONSTRUCTION}, IDENTITIES),
    "identity": Case({**parts_in("train"), "classifier": "train"}, {"identity": {}}, IDENTITIES),
    "identity in two parts": Case(
        {**parts_in("train", "train"), "classifier": "train"},
        {"identity": {"smoothing": 0.2, "weight": 2.0}}, IDENTITIES, accumulate=2, zero=(0,)),
    "identity in double": Case(
        {**parts_in("train", "train"), "classifier": "train"},
        {"identity": {"smoothing": 0.1}}, IDENTITIES, zero=(0,), double=True),
    "strong": Case(
        {**parts_in("train", "train"), "classifier": "train"},
        {"identity": {"smoothing": 0.1}, "triplet": {"margin": 0.3}}, IDENTITIES, zero=(0, 1, 3), of=NECK, seed=1),
    "strong in double": Case(
        {**parts_in("train", "train"), "classifier": "train"},
        {"identity": {"smoothing": 0.1}, "triplet": {}}, IDENTITIES, zero=(0,), double=True, of=NECK, seed=1),
    "adversarial": Case(
        {**HEADS, "discriminator": "train"}, {**RECONSTRUCTION, "adversarial": {"weight": 0.5}}, FIRST, zero=(0,),
        terms=("adversarial",)),
}


def _start(case: Case) -> tuple[ToyView, Tensor, EmbAE]:
    """View, images, model: the same in every process."""
    view = LABELLED if case.labelled else PLAIN
    inputs = images(len(view), seed=1 if case.labelled else 2)
    if case.labelled:  # people that look alike to a model that knows nothing yet
        inputs = inputs + images(4, seed=2)[torch.from_numpy(view.pid)]
    made = model(case.parts, heads(5), classes=4, of=case.of, seed=case.seed)
    return view, inputs.to(case.dtype), made.to(case.dtype)


@on_ranks(2, 3, 4)
def one_step(world: World, folder: Path) -> dict[str, Any]:
    """What one step did, by case and ZeRO stage: ``before − after`` of every weight, and all other tensors after it."""
    from embae.trainer.training.adversary import own_parameters
    from embae.trainer.training.engine import Engine

    found: dict[str, Any] = {}
    for name, case in CASES.items():
        for zero in case.zero:
            view, inputs, made = _start(case)
            inputs, made = inputs.to(world.device), made.to(world.device)
            use_global_batch_norm(made, sync=True)
            keys = stage(
                case.parts,
                case.loss,
                **({"data": {"from": "sources", "P": 4, "K": 4}} if case.labelled else {}),
                accumulate=case.accumulate,
                batch_norm={},
                deepspeed={"zero_stage": zero, "zero": _partition_small(zero)},
            )
            before = {key: value.cpu().clone() for key, value in made.state_dict().items()}
            weights = {key for key, value in made.named_parameters() if value.requires_grad}
            batches = share_of(view, inputs, case.plan, world.rank, world.world_size, case.accumulate)
            objective = Objective(made, keys.loss, form=BatchForm(case.accumulate))
            objective.active = case.terms or keys.loss.terms()
            if case.double:
                report = _step_without_engine(objective, batches)
                after = {key: value.cpu() for key, value in made.state_dict().items()}
            else:
                engine = Engine(objective, keys, largest=8, trained=own_parameters(objective, keys.loss))
                report = engine.step(batches, RATE)
                after = engine.state()
                engine.close()
            gradients = {key: (before[key] - after[key]) / RATE for key in before if key in weights}
            others = {key: after[key] for key in before if key not in weights}
            digest = hashlib.sha256()
            for value in (*gradients.values(), *others.values()):
                digest.update(value.contiguous().numpy().tobytes())
            found[f"{name}, ZeRO {zero}"] = {
                "loss": report["loss"].item(),
                "keys": list(after),
                "digest": digest.hexdigest(),
                **({"gradients": gradients, "others": others} if world.first else {}),
            }
    return found


def _step_without_engine(objective: Objective, batches: list[Batch]) -> dict[str, Tensor]:
    """What DeepSpeed promises: gradients are averaged over ranks and parts."""
    reports = []
    for batch in batches:
        loss, report = objective.train()(batch)
        (loss / len(batches)).backward()
        reports.append(report)
    for weight in objective.parameters():
        if weight.requires_grad:
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(grad)
            weight.data.sub_(RATE * grad / dist.get_world_size())
    return {key: torch.stack([report[key] for report in reports]).mean() for key in reports[0]}


def _partition_small(zero: int) -> dict[str, Any]:
    """By default ZeRO 3 leaves parameters as small as these whole."""
    return {"stage3_param_persistence_threshold": 0} if zero == 3 else {}


@functools.cache
def reference(name: str, world_size: int) -> Reference:
    """Computed once for all ZeRO stages. What the parts of a step are depends on the number of ranks."""
    return Reference(CASES[name], world_size)


class Reference:
    """A case in one process: gradients, buffers and the loss."""

    def __init__(self, case: Case, world_size: int):
        view, inputs, self.model = _start(case)
        self.model.double().train()
        self.case, inputs = case, inputs.double()
        wholes = [
            np.concatenate(
                [
                    case.plan[share(len(case.plan), rank * case.accumulate + part, world_size * case.accumulate)]
                    for rank in range(world_size)
                ]
            )
            for part in range(case.accumulate)
        ]
        self.loss = 0.0
        for rows in wholes:
            loss = self._loss(inputs[torch.from_numpy(rows)], view.pid[rows], view.camid[rows])
            loss.backward()
            self.loss += loss.item()
        trained = {key: value for key, value in self.model.named_parameters() if value.requires_grad}
        self.gradients = {  # of the discriminator none: the encoders' turn leaves it
            key: torch.zeros_like(value) if value.grad is None or key.startswith("discriminator") else value.grad
            for key, value in trained.items()
        }
        self.others = {key: value for key, value in self.model.state_dict().items() if key not in trained}

    def _loss(self, inputs: Tensor, pid: np.ndarray, camid: np.ndarray) -> Tensor:
        _, _, fresh = _start(self.case)
        with torch.no_grad():
            target = fresh.double().eval().backbone(inputs)
        features = self.model.backbone(inputs)
        z = features if self.model.uses["embedding"] == "absent" else self.model.embedding(features)
        loss, terms = z.new_zeros(()), self.case.terms or tuple(self.case.loss)
        if "triplet" in terms:
            keys = self.case.loss["triplet"]
            mined = features if self.case.of is NECK else z  # in front of the neck
            gaps = torch.stack([_gap(mined, pid, anchor) for anchor in range(len(mined))])
            each = F.softplus(gaps) if "margin" not in keys else F.relu(gaps + keys["margin"])
            loss = loss + keys.get("weight", 1) * each.mean()
        if "circle" in terms:
            keys = self.case.loss["circle"]
            loss = loss + keys.get("weight", 1) * literal_circle(z, pid.tolist(), gamma=keys["gamma"])
        if "identity" in terms:
            keys = self.case.loss["identity"]
            weights, smooth = self.model.classifier(z).softmax(1).log(), keys.get("smoothing", 0)
            each = [(1 - smooth) * row[person] + smooth * row.mean() for row, person in zip(weights, pid, strict=True)]
            loss = loss - keys.get("weight", 1) * torch.stack(each).sum() / len(self.case.plan)
        if {"reconstruction", "adversarial"} & set(terms):
            v = z.new_zeros(len(z), 6)
            for camera in sorted(set(camid.tolist())):
                rows, part = torch.from_numpy(np.flatnonzero(camid == camera)), self.model.nuisance.heads[camera]
                part.train(len(rows) > 1 and self.case.parts["nuisance"] == "train")
                v = v.index_copy(0, rows, part(features[rows]))
        if "adversarial" in terms:
            told = torch.sigmoid(self.model.discriminator(torch.cat([z, v], 1)))
            loss = loss - self.case.loss["adversarial"]["weight"] * told.log().sum() / len(self.case.plan)
        if "reconstruction" in terms:
            rebuilt = self.model.decoder(torch.cat([z, v], 1))
            loss = loss + (rebuilt - target).square().sum() / (len(self.case.plan) * target.shape[1])
        return loss


def literal_circle(z: Tensor, identity: list[int], *, gamma: float, margin: float = 0.25) -> Tensor:
    """Sun et al. 2020 (arXiv 2002.10857), eq. 5 and 6, pair by pair; the mean over the anchors."""
    optimum_p, optimum_n, margin_p, margin_n = 1 + margin, -margin, 1 - margin, margin
    losses = []
    for a in range(len(z)):
        sum_p, sum_n = z.new_zeros(()), z.new_zeros(())
        for b in range(len(z)):
            s = (z[a] * z[b]).sum() / (z[a].norm() * z[b].norm())
            if identity[a] == identity[b] and a != b:
                alpha = max(optimum_p - s.item(), 0.0)  # a constant for the gradient
                sum_p = sum_p + (-gamma * alpha * (s - margin_p)).exp()
            elif identity[a] != identity[b]:
                alpha = max(s.item() - optimum_n, 0.0)
                sum_n = sum_n + (gamma * alpha * (s - margin_n)).exp()
        losses.append((1 + sum_n * sum_p).log())
    return torch.stack(losses).mean()


def _gap(z: Tensor, pid: np.ndarray, anchor: int) -> Tensor:
    """Farthest positive less nearest negative; that both are so by a margin makes them the same in single precision."""
    to = [(z[anchor] - other).norm() for other in z]
    positive = sorted((to[i] for i in range(len(z)) if pid[i] == pid[anchor] and i != anchor), reverse=True)
    negative = sorted(to[i] for i in range(len(z)) if pid[i] != pid[anchor])
    assert positive[0] - positive[1] > 1e-4 * positive[0] and negative[1] - negative[0] > 1e-4 * negative[0]
    return positive[0] - negative[0]
