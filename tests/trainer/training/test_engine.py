"""What a stage's engine moves, and what it leaves alone, at every ZeRO stage and in bfloat16."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from helpers.toy_models import (
    RECONSTRUCTION,
    TRIPLET,
    ToyView,
    distance,
    heads,
    images,
    model,
    norm,
    parts_in,
    share_of,
    stage,
)
from torch import Tensor

from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.embae import EmbAE
from embae.trainer.runtime.distributed import World
from embae.trainer.training.objective import BatchForm, Objective

# Camera 2 has a single image in the first batch, 1 and 4 have none in the later one, 3 none at all.
VIEW = ToyView(pid=np.repeat(range(4), 4), camid=[4, 1, 1, 2, 4, 1, 0, 0, 2, 0, 0, 2, 0, 2, 2, 0])
FIRST, LATER = np.array([*range(8), 9, 10]), np.arange(8, 16)
HEADS = parts_in("frozen", "train", "train", "train")
ADAM = {"name": "adam", "lr": 1e-3}
State = dict[str, Tensor]


def _made(parts: dict[str, str], **keys: Any) -> tuple[EmbAE, Any]:
    """The model, ready, and its stage."""
    loss = {
        **(TRIPLET if parts["backbone"] == "train" else {}),
        **(RECONSTRUCTION if parts["decoder"] != "absent" else {}),
    }
    keys = stage(parts, loss, **keys)
    made = model(parts, heads(5), running=[part for part, mode in keys.batch_norm.items() if mode == "running"])  # type: ignore[attr-defined]
    use_global_batch_norm(made, sync=True)
    return made, keys


def _copy(made: torch.nn.Module) -> State:
    return {key: value.detach().clone() for key, value in made.state_dict().items()}


def _steps(engine: Any, keys: Any, world: World, plans: list[np.ndarray], lr: float = 1e-3) -> list[float]:
    inputs = images(len(VIEW))
    return [
        engine.step(
            share_of(VIEW, inputs, plan, world.rank, world.world_size, keys.accumulate, step), lr
        )["loss"].item()
        for step, plan in enumerate(plans)
    ]


def _engine(made: EmbAE, keys: Any, world: World) -> Any:
    from embae.trainer.training.engine import Engine

    return Engine(Objective(made, keys.loss, form=BatchForm(keys.accumulate)), keys, largest=12)


ABSENT = {
    "adam": {"optimizer": ADAM},
    "adamw with decay, clipped, in two parts": {
        "optimizer": {**ADAM, "name": "adamw", "weight_decay": 0.1},
        "clip": 0.1,
        "accumulate": 2,
    },
    "sgd": {"optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}},
    "bf16": {"optimizer": ADAM, "precision": "bf16"},
}


@on_ranks(1, 2)
def leave_heads(world: World, folder: Path) -> dict[str, Any]:
    """Weights, buffers and the optimizer's state before and after steps without cameras 1 and 4."""
    found = {}
    for name, options in ABSENT.items():
        made, keys = _made(HEADS, **options)
        engine = _engine(made, keys, world)
        _steps(engine, keys, world, [FIRST] * 3)
        before = engine.state(), _moments(engine, made)
        losses = _steps(engine, keys, world, [LATER] * 4)
        found[name] = before, (engine.state(), _moments(engine, made)), losses
        engine.close()
    return found


def _moments(engine: Any, made: EmbAE) -> State:
    """The optimizer's state by the names of the weights."""
    state = engine.optimizer.state
    return {
        f"{name}.{key}": torch.as_tensor(value).clone()
        for name, weight in made.named_parameters()
        for key, value in state.get(weight, {}).items()
    }


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ABSENT)
def test_a_head_without_images_does_not_move(computed: Callable[..., Any], name: str, world_size: int) -> None:
    (before, moments), (after, later), losses = computed(leave_heads, world_size)[0][name]
    start = model(HEADS, heads(5)).state_dict()
    for number in (1, 4):
        own = [key for key in before if key.startswith(f"nuisance.heads.{number}.")]
        weights = [key for key in own if key.endswith(("weight", "bias"))]
        assert all(torch.equal(after[key], before[key]) for key in own)
        kept = [key for key in moments if key.startswith(f"nuisance.heads.{number}.")]
        assert len(kept) >= len(weights) and all(torch.equal(later[key], moments[key]) for key in kept)
        # They were there before, so momentum had something to move them by.
        # In bfloat16 the gradient below a batch norm over two images may round to nothing.
        assert all(not torch.equal(before[key], start[key]) for key in weights if ".3." in key or name != "bf16")
        assert all(moments[key].abs().max() > 0 for key in kept if ".3." in key or name != "bf16")
    assert all(torch.equal(after[key], start[key]) for key in after if key.startswith("nuisance.heads.3."))
    assert not any(key.startswith("nuisance.heads.3.") for key in later)
    for number in (0, 2):
        assert not torch.equal(after[f"nuisance.heads.{number}.3.weight"], before[f"nuisance.heads.{number}.3.weight"])
    # Camera 2 had a single image in each of the first batches.
    assert np.isfinite(losses).all()
    assert all(value.isfinite().all() for state in (before, after, later) for value in state.values())
    assert torch.equal(before["nuisance.heads.2.2.running_mean"], start["nuisance.heads.2.2.running_mean"])


RUNS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    **{
        f"ZeRO {zero}": (parts_in("frozen", "train", "frozen", "train"), {"deepspeed": {"zero_stage": zero}})
        for zero in range(4)
    },
    **{
        f"bf16, ZeRO {zero}": (
            parts_in("frozen", "train", "frozen", "train"),
            {"deepspeed": {"zero_stage": zero}, "precision": "bf16"},
        )
        for zero in range(2)
    },
    "running statistics": (parts_in("frozen", "train", "frozen", "frozen"), {"batch_norm": {"embedding": "running"}}),
    "backbone, bf16": (parts_in("train", "train"), {"precision": "bf16", "deepspeed": {"zero_stage": 1}}),
    "backbone and decoder": (parts_in("train", "train", "train", "train"), {}),
}


@on_ranks(1, 2)
def two_steps(world: World, folder: Path) -> dict[str, Any]:
    """Every tensor before and after; with a trained backbone, the reconstruction's target too."""
    found = {}
    for name, (parts, options) in RUNS.items():
        made, keys = _made(parts, optimizer=ADAM, **options)
        before = _copy(made)
        engine = _engine(made, keys, world)
        reference = getattr(engine.module, "reference", torch.nn.Identity())
        target = _copy(reference)
        losses = _steps(engine, keys, world, [np.arange(12), np.arange(4, 16)])
        found[name] = before, engine.state(), losses, (target, _copy(reference))
        engine.close()
    return found


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_trained_parts_move_and_frozen_ones_do_not(computed: Callable[..., Any], name: str, world_size: int) -> None:
    parts, options = RUNS[name]
    before, after, losses, (target, target_after) = computed(two_steps, world_size)[0][name]
    assert list(after) == list(before) and np.isfinite(losses).all()
    for key, value in before.items():
        part = key.split(".")[0]
        still = parts[part] == "frozen" or (part in options.get("batch_norm", {}) and "running" in key)
        counts = part in options.get("batch_norm", {}) and "tracked" in key
        absent = key.startswith("nuisance.heads.3.")
        assert after[key].dtype == value.dtype and after[key].isfinite().all(), key
        if still or counts or absent:
            assert torch.equal(after[key], value), f"{key} moved"
        elif not key.startswith("nuisance"):
            assert not torch.equal(after[key], value), f"{key} stayed"
    assert bool(target) == (name == "backbone and decoder")
    assert all(torch.equal(target[key], target_after[key]) for key in target)


@on_ranks(1, 2)
def clipped(world: World, folder: Path) -> dict[int, float]:
    """Length of one step of plain gradient descent, by ZeRO stage; 4 is without clipping."""
    found = {}
    for zero in (0, 1, 2, 3, 4):
        made, keys = _made(
            parts_in("frozen", "train", "frozen", "train"),
            clip=None if zero == 4 else 0.01,
            deepspeed={"zero_stage": zero % 4},
        )
        before = _copy(made)
        engine = _engine(made, keys, world)
        _steps(engine, keys, world, [np.arange(12)], lr=1.0)
        after = engine.state()
        engine.close()
        found[zero] = norm(
            {key: after[key] - before[key] for key, weight in made.named_parameters() if weight.requires_grad}
        )
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_clipping_shortens_the_step(computed: Callable[..., Any], world_size: int) -> None:
    found = computed(clipped, world_size)[0]
    assert [found[zero] for zero in range(4)] == pytest.approx([0.01] * 4, rel=1e-3)
    assert found[4] > 0.02


# Fused as ours, since Adam makes a step of one rounding difference where a gradient is next to nothing.
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "adam": (
        {"name": "adam", "betas": [0.5, 0.9], "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), weight_decay=0.1, fused=True),
    ),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.3},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, fused=True),
    ),
    "sgd": (
        {"name": "sgd", "momentum": 0.7, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.7, weight_decay=0.1, fused=True),
    ),
}


@on_ranks(1)
def optimize(world: World, folder: Path) -> dict[str, Any]:
    """Three steps with each optimizer, and what DeepSpeed makes of keys of its own."""
    found: dict[str, Any] = {}
    for name, (options, _) in OPTIMIZERS.items():
        made, keys = _made(HEADS, optimizer=options)
        engine = _engine(made, keys, world)
        _steps(engine, keys, world, [FIRST] * 3, lr=0.01)
        found[name] = engine.state()
        engine.close()
    made, keys = _made(
        parts_in("frozen", "train", "frozen", "train"),
        deepspeed={"zero_stage": 1, "zero": {"allgather_bucket_size": 12346}, "prescale_gradients": True},
    )
    engine = _engine(made, keys, world)
    found["keys"] = engine.wrapped.postscale_gradients(), engine.wrapped.zero_allgather_bucket_size()
    engine.close()
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_torchs_of_that_name(computed: Callable[..., Any], name: str) -> None:
    made, keys = _made(HEADS)
    start = _copy(made)
    optimizer = OPTIMIZERS[name][1]([weight for weight in made.parameters() if weight.requires_grad])
    (batch,) = share_of(VIEW, images(len(VIEW)), FIRST, 0, 1)
    objective = Objective(made, keys.loss).train()
    objective.active = ["reconstruction"]
    for _ in range(3):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    found = computed(optimize, 1)[0][name]
    steps = [{key: state[key] - start[key] for key, _ in made.named_parameters()} for state in (found, _copy(made))]
    assert norm(steps[1]) > 0.05
    assert distance(*steps) < 1e-4


def test_deepspeed_gets_its_own_keys(computed: Callable[..., Any]) -> None:
    assert computed(optimize, 1)[0]["keys"] == (False, 12346)


@on_ranks(1)
def many(world: World, folder: Path) -> list[int]:
    """Resident kilobytes after each of some engines in one process."""

    def resident() -> int:
        return int(
            next(
                line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
            ).split()[1]
        )

    found = []
    for _ in range(12):
        made, keys = _made(parts_in("frozen", "train", "frozen", "train"), optimizer=ADAM, deepspeed={"zero_stage": 1})
        engine = _engine(made, keys, world)
        _steps(engine, keys, world, [np.arange(12)])
        engine.close()
        found.append(resident())
    return found


def test_engines_leave_no_memory_behind(computed: Callable[..., Any]) -> None:
    found = computed(many, 1)[0]
    print(found)
    assert found[-1] - found[5] < 30_000  # weights and buffers of an engine are 1 MB; DeepSpeed's own objects a little


@pytest.mark.parametrize("world_size", [1, 2])
def test_deepspeed_says_nothing_of_what_a_user_did_not_do(
    computed: Callable[..., Any], world_size: int, rank_logs: Callable[[int], Iterator[str]]
) -> None:
    computed(two_steps, world_size)
    # Beside what the tests print, the ranks' logs hold the console lines of what other tests did in them.
    ours = re.compile(r"test: |\[[a-z][a-z-]*\] |sharding [a-z]+: ")
    assert [line for line in rank_logs(world_size) if not ours.match(line)] == []
