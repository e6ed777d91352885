"""The memory of identities: its losses and updates against their formulas, written out, and on several ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.noise_datasets import SIZE, shared_shards
from helpers.ranks import on_ranks
from helpers.toy_models import CROWD, FIRST, SECOND, ToyView, distance, images, model, parts_in, share_of, stage
from torch import Tensor

from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.relabelled_view import RelabelledView
from embae.datasets.sampling.view import View, labelled_rows
from embae.trainer.losses.camera_proxies import ProxyLoss
from embae.trainer.losses.cluster_memory import ClusterMemory, MemoryLoss
from embae.trainer.losses.registry import Loss
from embae.trainer.runtime.distributed import World, gather_rows
from embae.trainer.training.objective import BatchForm, Objective
from embae.trainer.training.term_states import start_states

SPEC = ImageSpec(*SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RATE = 2.0**20  # the step is so long that what it started from does not round it


def _unit(count: int, seed: int) -> Tensor:
    drawn = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn)


KINDS = {"memory": MemoryLoss, "proxies": ProxyLoss}


def _memory(term: str = "memory", **keys: Any) -> ClusterMemory:
    """Over the crowd, in double precision, entries of any direction."""
    made = KINDS[term](**keys).build_state(CROWD, 5)  # type: ignore[arg-type]
    made.buffers.double()
    made.entries.copy_(_unit(len(made.entries), 8))
    return made


def _whose(term: str) -> list[tuple[int, int, int]]:
    """Dataset, identity and camera of each entry; the camera is 0 where they are not told apart."""
    camid = CROWD.camid if term == "proxies" else 0 * CROWD.camid
    return sorted({(int(pid > 2), int(pid), int(cam)) for pid, cam in zip(CROWD.pid, camid, strict=True)})


def literal(z: Tensor, rows: np.ndarray, entries: Tensor, keys: MemoryLoss) -> tuple[Tensor, float]:
    """The mean loss of images, and the share of them that are nearest to their own entry, image by image."""
    whose, total, near = _whose("proxies" if isinstance(keys, ProxyLoss) else "memory"), z.new_zeros(()), 0
    for vector, row in zip(z, rows, strict=True):
        cosine = [float("nan") if dataset != int(CROWD.pid[row] > 2) else
                  sum(a * b for a, b in zip(vector / vector.norm(), entry, strict=True))
                  for (dataset, _, _), entry in zip(whose, entries, strict=True)]
        pid, cam = CROWD.pid[row], CROWD.camid[row] if isinstance(keys, ProxyLoss) else 0
        own = whose.index((int(pid > 2), pid, cam))
        score = [value / keys.temperature for value in cosine]
        among = [e for e, (dataset, _, c) in enumerate(whose) if dataset == whose[own][0] and c == cam]
        total = total - score[own] + torch.stack([score[e].exp() for e in among]).sum().log()
        near += own == max(among, key=lambda e: score[e].item())
        positive = [e for e, (_, p, c) in enumerate(whose) if p == pid and c != cam]
        if positive:
            others = [e for e, (dataset, p, _) in enumerate(whose) if dataset == whose[own][0] and p != pid]
            hard = sorted(others, key=lambda e: -score[e].item())[:keys.hard_negatives]
            bottom = torch.stack([score[e].exp() for e in positive + hard]).sum()
            total = total + 0.5 * sum(-(score[e].exp() / bottom).log() for e in positive) / len(positive)
    return total / len(rows), near / len(rows)


@pytest.mark.parametrize("rows", [FIRST, SECOND])
@pytest.mark.parametrize(("term", "keys"), [
    ("memory", {}), ("memory", {"temperature": 0.4}), ("proxies", {}),
    ("proxies", {"hard_negatives": 3, "temperature": 0.3}),
])  # fmt: skip
def test_the_loss_and_its_gradient_are_those_of_the_formula(term: str, keys: dict[str, Any], rows: np.ndarray) -> None:
    memory, inputs = _memory(term, **keys), 3 * _unit(len(CROWD), 4)
    z, same = inputs[rows].requires_grad_(), inputs[rows].clone().requires_grad_()
    (batch,) = share_of(CROWD, inputs, rows, 0, 1)
    loss, near = memory.loss(z, batch)
    wanted, share = literal(same, rows, memory.entries, KINDS[term](**keys))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12) and near.item() == pytest.approx(share)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(z.grad, same.grad, rtol=1e-10, atol=1e-12)
    parts = [memory.loss(inputs[part.rows], part) for part in share_of(CROWD, inputs, rows, 0, 1, accumulate=3)]
    assert sum(part[0] for part in parts).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert sum(part[1] for part in parts).item() == pytest.approx(share)


def test_where_everything_is_alike_the_gradient_is_finite() -> None:
    memory = _memory("proxies")
    memory.entries.copy_(memory.entries[:1].clone())
    (batch,) = share_of(CROWD, _unit(len(CROWD), 4), FIRST, 0, 1)
    z = torch.ones(len(FIRST), 5, dtype=torch.float64, requires_grad=True)
    memory.loss(z, batch)[0].backward()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("term", ["memory", "proxies"])
@pytest.mark.parametrize("update", ["mean", "hard"])
def test_the_update_is_its_formula(update: str, term: str, accumulate: int) -> None:
    memory, z = _memory(term, update=update, momentum=0.3), 3 * _unit(len(CROWD), 4)
    rows = np.delete(SECOND, [0, 5, 6])  # the batch has nothing of some entries
    before, whose = memory.entries.clone(), _whose(term)
    for part in share_of(CROWD, z, rows, 0, 1, accumulate):
        memory.loss(part.inputs, part)
    memory.update(part, torch.zeros(()), gather_rows)
    unmoved = 0
    for entry, (_, pid, cam) in enumerate(whose):
        own = [row for row in rows if CROWD.pid[row] == pid and (term == "memory" or CROWD.camid[row] == cam)]
        unit, old = [(z[row] / z[row].norm()).tolist() for row in own], before[entry].tolist()
        if not own:
            assert torch.equal(memory.entries[entry], before[entry])
            unmoved += 1
            continue
        to = ([sum(values) / len(own) for values in zip(*unit, strict=True)] if update == "mean" else
              min(unit, key=lambda one: sum(a * b for a, b in zip(one, old, strict=True))))
        new = [0.3 * a + 0.7 * b for a, b in zip(old, to, strict=True)]
        length = math.sqrt(sum(value**2 for value in new))
        assert memory.entries[entry].tolist() == pytest.approx([value / length for value in new], rel=1e-12)
    assert 0 < unmoved < len(whose)


def test_a_broken_step_does_not_move_it() -> None:
    memory, z = _memory(), _unit(len(CROWD), 4)
    before = memory.entries.clone()
    for broken in (1.0, 0.0):
        (batch,) = share_of(CROWD, torch.full_like(z, math.nan) if broken else z, FIRST, 0, 1)
        memory.loss(batch.inputs, batch)
        memory.update(batch, torch.tensor(broken), gather_rows)
        assert torch.equal(memory.entries, before) == bool(broken)
    assert memory.entries.isfinite().all()


def test_a_memory_of_others_is_refused() -> None:
    with pytest.raises(ValueError, match="no memory of this stage's identities"):
        _memory("proxies").restore(_memory().full_state())
    with pytest.raises(ValueError, match="no memory of this stage's identities"):
        _memory().restore({})


# On ranks: two steps of real engines, over all losses that go with identities.
PARTS = {**parts_in("train", "train"), "classifier": "train"}
TERMS: dict[str, Any] = {"proxies": {"temperature": 0.2, "momentum": 0.4}, "memory": {"update": "hard"}, "identity": {}}
PEOPLE = ToyView(pid=np.repeat(range(4), 4), camid=np.tile([0, 1, 2], 6)[:16])
PLAN = np.random.default_rng(5).permutation(16)
CASES = {  # accumulate, further keys, whether a plain triplet loss stands beside it
    "ZeRO 0": (1, {"deepspeed": {"zero_stage": 0}, "ema": 0.9}, True),
    "ZeRO 1": (1, {"deepspeed": {"zero_stage": 1}}, False),
    "ZeRO 2": (1, {"deepspeed": {"zero_stage": 2}}, False),
    "ZeRO 3": (1, {"deepspeed": {"zero_stage": 3}, "ema": 0.9}, True),
    "in two parts": (2, {"deepspeed": {"zero_stage": 0}, "batch_norm": {"embedding": "running",
                                                                        "backbone": "running"}}, False),
    "bf16": (1, {"deepspeed": {"zero_stage": 1}, "precision": "bf16"}, False),
}  # fmt: skip


def _start(case: str, whole: bool = False) -> tuple[Any, Objective, Tensor]:
    from embae.trainer.model.batch_norm import use_global_batch_norm

    accumulate, keys, triplet = CASES[case]
    stage_keys = stage(PARTS, {**TERMS, **({"triplet": {}} if triplet else {})}, accumulate=accumulate,
                       data={"from": "sources", "P": 4, "K": 4}, **keys)
    made = model(PARTS, classes=4, running=keys.get("batch_norm", ()))
    use_global_batch_norm(made, sync=True)
    found = stage_keys.loss.build_states(PEOPLE, made.z)  # type: ignore[union-attr, arg-type]
    for memory in found.values():
        drawn = torch.randn(memory.entries.shape, generator=torch.Generator().manual_seed(7))
        memory.entries.copy_(torch.nn.functional.normalize(drawn))
    objective = Objective(made, stage_keys.loss, found, BatchForm(1 if whole else accumulate))  # type: ignore[arg-type]
    inputs = images(16, seed=1) + images(4, seed=2)[torch.from_numpy(PEOPLE.pid)]
    return stage_keys, objective, inputs


def _entries(moments: dict[str, Tensor]) -> Tensor:
    return torch.cat([moments["memory/entries"], moments["proxies/entries"]])


@on_ranks(2, 4)
def steps(world: World, folder: Path) -> dict[str, Any]:
    """By case: what a step moved, the memory after it, and after one that is not finite."""
    from embae.trainer.training.updates import StepUpdates

    found = {}
    for case in CASES if world.world_size == 2 else ("ZeRO 0", "in two parts"):
        keys, objective, inputs = _start(case)
        before = {name: value.clone() for name, value in objective.model.state_dict().items()}
        turns = StepUpdates(objective, keys, largest=8)
        batches = share_of(PEOPLE, inputs, PLAN, world.rank, world.world_size, keys.accumulate)
        report = turns.step(batches, RATE)
        after, memory = turns.state(), _entries(turns.moments())
        turns.step(share_of(PEOPLE, inputs * math.nan, PLAN, world.rank, world.world_size, keys.accumulate, 1), RATE)
        trained = {name for name, value in objective.model.named_parameters() if value.requires_grad}
        found[case] = {
            "gradients": {name: (before[name] - after[name]) / RATE for name in before if name in trained},
            "report": {name: value.item() for name, value in report.items()}, "memory": memory,
            "broken": turns.broken.item(), "then": _entries(turns.moments()),
        }  # fmt: skip
        turns.close()
    return found


@pytest.mark.parametrize(("world_size", "case"), [*((2, case) for case in CASES), (4, "ZeRO 0"), (4, "in two parts")])
def test_a_step_on_ranks_is_a_step_of_one_process(computed: Callable[..., Any], world_size: int, case: str) -> None:
    every = [rank[case] for rank in computed(steps, world_size)]
    keys, objective, inputs = _start(case, whole=True)
    objective.double().train()
    # Parts are normalised one by one, but not where batch norms keep to their running statistics.
    (batch,) = share_of(PEOPLE, inputs.double(), PLAN, 0, 1)
    loss, report = objective(batch)
    loss.backward()
    start = torch.cat([memory.entries for memory in objective.states.values()])
    for memory in objective.states.values():
        memory.update(batch, torch.zeros(()), gather_rows)
    then = torch.cat([memory.entries for memory in objective.states.values()])
    wanted = {name: value.grad for name, value in objective.model.named_parameters() if value.requires_grad}
    low = keys.precision == "bf16"
    error = distance(every[0]["gradients"], wanted)  # type: ignore[arg-type]
    moved = distance({"memory": every[0]["memory"] - start}, {"memory": then - start})
    print(f"{case} on {world_size}: gradients {error:.1e}, memory {moved:.1e}")
    assert error < (0.3 if low else 1e-5) and moved < (0.05 if low else 1e-5)  # bf16: through 14 batch norms
    for name in ("memory", "near_memory", "proxies", "near_proxies", "loss"):
        few = 0.1 if low and name.startswith("near") else 0  # of 16 images, one may be as near to two entries
        assert every[0]["report"][name] == pytest.approx(report[name].item(), rel=0.02 if low else 1e-5, abs=few)
    for rank in every:
        assert torch.equal(rank["memory"], every[0]["memory"])
        assert rank["broken"] == 1 and torch.equal(rank["then"], rank["memory"])


def _views(root: Path) -> dict[str, View]:
    """Sources as they are, and beside them a target by pseudo-labels that leave some images out."""
    indexes = [Index.open(root / name) for name in ("one", "two", "target")]
    labels = np.arange(indexes[2].count("train")) % 8 - 1
    return {"sources": View(indexes[:2], "train"), "all": RelabelledView(indexes, "train", labels)}


@on_ranks(1, 2)
def filled(world: World, folder: Path) -> dict[str, Any]:
    """The entries at a stage's begin, by view and term, and what one process finds each image to be."""
    from embae.trainer.inference.batches import read_batches
    from embae.trainer.inference.options import Inference, Reading

    found: dict[str, Any] = {}
    made = model(parts_in("train", "train")).eval()
    for name, view in _views(shared_shards(world, folder) / "labelled").items():
        both = {term: kind().build_state(view, made.z) for term, kind in KINDS.items()}
        start_states(both.values(), made, view, Inference(SPEC, world, folder / "cache", Reading("webdataset", 1, 16)))
        found |= {f"{name} {term}": memory.entries for term, memory in both.items()}
        if world.world_size == 1:
            batches = read_batches(view, np.arange(len(view)), SPEC, Reading("webdataset", 1, 128), world.device)
            with torch.inference_mode():
                found[name] = torch.cat([made(batch.inputs) for batch in batches]).clone()
    return found


@pytest.mark.parametrize("term", ["memory", "proxies"])
@pytest.mark.parametrize("name", ["sources", "all"])
def test_it_begins_as_the_mean_of_unit_embeddings(
    computed: Callable[..., Any], rank_folder: Callable[[int], Path], name: str, term: str
) -> None:
    (one,) = computed(filled, 1)
    view = _views(rank_folder(1).parent / "small-shards" / "labelled")[name]
    z, rows = one[name].double(), labelled_rows(view)
    dataset, identity, camid = view.locate(rows)[0], view.identity(rows), view.column("camid", rows)
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for row, *key in zip(rows, dataset, identity, camid, strict=True):
        groups.setdefault(tuple(map(int, key[:3 if term == "proxies" else 2])), []).append(z[row] / z[row].norm())
    means = [sum(groups[key]) / len(groups[key]) for key in sorted(groups)]  # type: ignore[call-overload]
    wanted = torch.stack([mean / mean.norm() for mean in means])
    torch.testing.assert_close(one[f"{name} {term}"].double(), wanted, rtol=1e-5, atol=1e-6)
    for rank in computed(filled, 2):
        assert torch.equal(rank[f"{name} {term}"], one[f"{name} {term}"])


@pytest.mark.parametrize("changes, said", [
    ({"data": {"from": "sources", "batch": 8}}, "loss.memory: needs identities; give data.P and data.K instead of "
     "data.batch"),
    ({"data": {"from": "sources", "P": {"one": 1, "two": 4}, "K": 2}}, "data.P: the memory needs at least 2"),
    ({"data": {"from": "sources", "P": 4, "K": 2, "mix": True}}, "data.mix: the memory tells apart the identities of "
     "one dataset at a time; leave it out"),
])  # fmt: skip
def test_what_it_needs_is_asked_for(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        stage(parts_in("train", "train"), {"memory": {}}, **changes)


@pytest.mark.parametrize("key, value", [("momentum", 1.0), ("temperature", 0), ("update", "last"),
                                        ("hard_negatives", 0)])  # fmt: skip
def test_its_keys_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        Loss.model_validate({"proxies": {key: value}})
