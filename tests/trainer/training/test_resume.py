"""A stage that goes on from a checkpoint is the stage that never stopped: bit for bit on as many ranks, and on another
number of ranks bit for bit in what it begins with, and up to rounding in its next gradient."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.noise_datasets import SIZE, shards
from helpers.run_parts import begin_stage
from helpers.toy_models import KEYS, distance, model, parts_in
from torch import Tensor

from embae.trainer.model import saved as export
from embae.trainer.recipe import load as recipes
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.distributed import World

pytestmark = pytest.mark.ranks

HALF, STEPS = 2, 4
ADAM = {"name": "adam", "lr": 1e-3}
RECONSTRUCTION: dict[str, Any] = {
    "parts": parts_in("frozen", "train", "train", "train"),
    "data": {"from": "sources", "batch": 10, "augment": {"flip": True}},
    "loss": {"reconstruction": {}},
}
TRIPLET: dict[str, Any] = {
    "parts": parts_in("train", "train"),
    "data": {"from": "sources", "P": 3, "K": 4, "augment": {"flip": True, "crop": True, "erase": 0.5}},
    "loss": {"triplet": {}},
}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
CASES: dict[str, dict[str, Any]] = {
    # 8, 16, 24, 256: not all of them divide by 3, and pieces of the flat tensor end within a weight.
    **{f"adam, clipped, ZeRO {zero}": {**RECONSTRUCTION, "clip": 0.05, "deepspeed": {"zero_stage": zero}}
       for zero in range(4)},
    "images by DALI, adamw, ZeRO 3": {**TRIPLET, "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
                                      "deepspeed": {"zero_stage": 3}, "loader": "dali"},
    # Parts are normalised one by one, and which images are in one depends on the number of ranks.
    **{f"sgd, in two parts, ZeRO {zero}": {
        **RECONSTRUCTION, "optimizer": SGD, "accumulate": 2, "deepspeed": {"zero_stage": zero},
        "batch_norm": {part: "running" for part in ("embedding", "nuisance", "decoder")}} for zero in (0, 2)},
    "trained backbone and its reference, ZeRO 2": {
        **RECONSTRUCTION, "parts": parts_in("train", "train", "train", "train"), "deepspeed": {"zero_stage": 2}},
    **{f"averaged weights, ZeRO {zero}": {**RECONSTRUCTION, "ema": 0.9, "deepspeed": {"zero_stage": zero}}
       for zero in (1, 3)},
    "adversarial": {
        **RECONSTRUCTION, "parts": {**RECONSTRUCTION["parts"], "discriminator": "train"},
        "data": {**TRIPLET["data"], "augment": {"flip": True}},
        "loss": {"reconstruction": {}, "adversarial": {}, "triplet": {}}},
    "heads of cameras": {**RECONSTRUCTION, "per": "camera", "data": {**RECONSTRUCTION["data"], "batch": 3}},
    "memory and proxies, averaged weights, ZeRO 2": {
        # A low temperature multiplies rounding, and so does reading a gradient from Adam's moments.
        **TRIPLET, "loss": {"memory": {"temperature": 0.5}, "proxies": {"temperature": 0.5}}, "ema": 0.9,
        "deepspeed": {"zero_stage": 2}, "optimizer": SGD},
    "memory in two parts": {
        **TRIPLET, "parts": parts_in("frozen", "train"), "data": {**TRIPLET["data"], "augment": {"flip": True}},
        "loss": {"memory": {"update": "hard"}}, "accumulate": 2, "batch_norm": {"embedding": "running"}},
    "batch norm by camera": {**RECONSTRUCTION, "batch_norm": {"embedding": "camera"}, "ema": 0.9},
    # Not on images: convolutions in bfloat16 differ from run to run on CPU, with or without a new start.
    "bf16, ZeRO 1": {**RECONSTRUCTION, "precision": "bf16", "deepspeed": {"zero_stage": 1}},
}  # fmt: skip
# Saved on → restored on; three ranks take what is cut by their number, and heads that some of them see nothing of.
ON_THREE = [case for case in CASES if "ZeRO" in case and "ZeRO 0" not in case and "bf16" not in case]
ON_THREE += ["heads of cameras"]
MOVES = [*itertools.product([(1, 2), (2, 1)], CASES), *itertools.product([(2, 3)], ON_THREE)]


def _recipe(base: Path, case: str) -> Recipe:
    keys = dict(CASES[case])
    nuisance, loader = {"dim": 6, "per": keys.pop("per", "shared")}, keys.pop("loader", "webdataset")
    stage = {"init": str(base / "start"), "steps": STEPS, "log_every": 1, "optimizer": ADAM, **keys}
    return recipes.check_recipe({
        "name": "toy", "model": {**KEYS.model_dump(), "nuisance": nuisance}, "run": ["stage"],
        "data": {"root": str(base / "shards" / "labelled"), "sources": ["one", "two"], "target": "target",
                 "image": list(SIZE), "loader": loader, "threads": 1},
        "stages": {"stage": stage},
    }, case)  # fmt: skip


def _place(base: Path, case: str, world_size: int, kind: str) -> Path:
    return base / "runs" / f"{[*CASES].index(case)}-{world_size}-{kind}"


def _stage(base: Path, case: str, run: Path, world: World, resume: Any = None) -> Any:

    run.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(base, case)
    return begin_stage(recipe, "stage", run, world, resume)


def half(world: World, folder: Path) -> None:
    """A checkpoint in the middle of each case."""
    for case in CASES:
        _half(folder.parent, case, world).close()


def _half(base: Path, case: str, world: World) -> Any:
    stage = _stage(base, case, _place(base, case, world.world_size, "half"), world)
    next(itertools.islice(stage.train(), HALF - 1, None))
    stage.keeper.save(HALF)
    stage.keeper.settle()
    return stage


def exact(world: World, folder: Path) -> dict[str, int]:
    """Each case at a stretch, and with a new start in between; where the second start began."""
    import torch.distributed as dist

    from embae.trainer.training.checkpoint import newest

    begun = {}
    for case in CASES:
        whole, run = (_place(folder.parent, case, world.world_size, kind) for kind in ("whole", "half"))
        stages = [_stage(folder.parent, case, whole, world)]
        _half(folder.parent, case, world).close()
        dist.barrier()
        stages.append(_stage(folder.parent, case, run, world, newest(run / "stage")))
        begun[case] = stages[1].start
        for stage in stages:
            for _ in stage.train():
                pass
            stage.export()
            stage.close()
    return begun


def elsewhere(world: World, folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What each case begins with where it goes on from other ranks' checkpoint, and what its next step sees."""
    from embae.trainer.training.checkpoint import Checkpoint, place

    found = {}
    moves = [(case, source) for (source, here), case in MOVES if here == world.world_size]
    if world.world_size == 1:  # what the others' next step is held against
        moves += [(case, 1) for case in CASES]
    for case, source in moves:
        saved = Checkpoint.open(place(_place(folder.parent, case, source, "half") / "stage", HALF))
        run = _place(folder.parent, case, world.world_size, f"from-{source}")
        stage = _stage(folder.parent, case, run, world, saved)
        begins = stage.updates.state(), stage.updates.moments()
        batch = _next_batch(stage)
        next(itertools.islice(stage.train(), 1, None))  # the first thing it gives is where it goes on
        found[case, source] = {"begins": begins, "batch": batch, "moments": stage.updates.moments()}
        stage.close()
    return found


def a_turn_fails(world: World, folder: Path) -> dict[str, Any]:
    """What an adversarial stage says where the discriminator's loss alone is not finite, at its second step."""
    from embae.trainer.training import stage as stage_module
    from embae.trainer.training.adversary import gaussian_noise

    def noise(seed: int, name: str) -> Any:
        draw = gaussian_noise(seed, name)
        return lambda batch, size: draw(batch, size) * (math.nan if batch.step == 1 else 1.0)

    stage_module.gaussian_noise = noise  # type: ignore[assignment]
    run, taken, said = _place(folder.parent, "adversarial", 1, "fails"), 0, ""
    try:
        for step in _stage(folder.parent, "adversarial", run, world).train():
            taken = step
    except FloatingPointError as error:
        said = str(error)
    finally:
        stage_module.gaussian_noise = gaussian_noise
    return {"taken": taken, "said": said, "left": [path.name for path in (run / "stage").glob("failed/*/*")]}


def _next_batch(stage: Any) -> dict[str, Tensor]:
    """Inputs of this rank's parts of the next step, by slot of the global batch, and the plan."""
    from embae.datasets.loading.open_loader import open_loader
    from embae.trainer.inference.features import FeatureLoader

    work, data = stage.work(stage.start), stage.recipe.data
    if stage.cached:
        loader: Any = FeatureLoader(work, stage.loader.features, stage.world.device)
    else:
        loader = open_loader(work, loader=data.loader, device=stage.world.device, threads=1)
    parts = [*itertools.islice(iter(loader), stage.keys.accumulate)]
    loader.close()
    inputs = torch.cat([part.inputs.contiguous() for part in parts])
    slots = torch.cat([torch.arange(part.slots.start, part.slots.stop) for part in parts])
    plan, step = torch.as_tensor(parts[0].plan), torch.tensor(parts[0].step)
    return {"inputs": inputs, "slots": slots, "plan": plan, "step": step}


Results = Callable[[str, int], list[Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and an export to start from."""
    folder = tmp_path_factory.mktemp("resume")
    shards(folder / "shards")
    (folder / "start").mkdir()
    made = model(parts_in("frozen", "frozen"))
    spec = export.ImageSpec(*SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    export.write(folder / "start", made, made.state_dict(), keys=KEYS, spec=spec)
    return folder


@pytest.fixture(scope="module")
def results(base: Path) -> Results:
    """``results(function, world_size)``: what each rank returned. Launches need checkpoints of the ones before."""
    for name, world_size, functions in (("one", 1, [half]), ("two", 2, [exact, elsewhere]), ("three", 3, [elsewhere]),
                                        ("one-again", 1, [elsewhere, a_turn_fails])):
        (base / name).mkdir()
        wanted = [f"{__file__}:{function.__name__}" for function in functions]
        wrong = ranks.launch(wanted, world_size, base / name, timeout_s=300)
        assert not wrong, wrong

    @functools.cache
    def get(function: str, world_size: int) -> list[Any]:
        folder = base / {1: "one-again", 2: "two", 3: "three"}[world_size]
        return [torch.load(ranks.result_file(folder, f"{__file__}:{function}", rank), weights_only=True)
                for rank in range(world_size)]

    return get


@pytest.mark.parametrize("case", CASES)
def test_on_as_many_ranks_all_bits_are_the_same(base: Path, results: Results, case: str) -> None:
    assert [begun[case] for begun in results("exact", 2)] == [HALF, HALF]
    whole, half = (_place(base, case, 2, kind) / "stage" for kind in ("whole", "half"))
    for file in (f"checkpoints/step-{STEPS:06}/state.safetensors", "export/model.safetensors", "export/model.json"):
        assert (whole / file).read_bytes() == (half / file).read_bytes(), file
    before = (half / f"checkpoints/step-{HALF:06}/state.safetensors").read_bytes()
    assert before != (half / f"checkpoints/step-{STEPS:06}/state.safetensors").read_bytes()


@pytest.mark.parametrize("move, case", MOVES)
def test_on_other_ranks_every_tensor_is_the_saved_one(
    base: Path, results: Results, move: tuple[int, int], case: str
) -> None:
    from embae.trainer.training.checkpoint import Checkpoint, place

    source, world_size = move
    saved = Checkpoint.open(place(_place(base, case, source, "half") / "stage", HALF))
    assert saved.meta.world_size == source
    for rank in results("elsewhere", world_size):
        for found, wanted in zip(rank[case, source]["begins"], saved.state(), strict=True):
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
                assert torch.equal(found[key].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), key
    optimizer = CASES[case].get("optimizer", ADAM)
    per_weight = {"adam": 3, "adamw": 3, "sgd": int(optimizer.get("momentum", 0) > 0)}[optimizer["name"]]
    model, beside = saved.state()
    moments = {key: value for key, value in beside.items() if not key.startswith(("average/", "memory/", "proxies/"))}
    trained = {part for part, use in CASES[case]["parts"].items() if use == "train"}
    weights = [key for key in model if key.split(".")[0] in trained and key.endswith((".weight", ".bias"))]
    if case == "heads of cameras":
        assert 0 < len(moments) < per_weight * len(weights)  # heads that no image came to have none
    else:
        assert len(moments) == per_weight * len(weights)
    averaged = [key for key, value in model.items() if key.split(".")[0] in trained and value.is_floating_point()]
    wanted = (len(averaged) if CASES[case].get("ema") else 0) + len({"memory", "proxies"} & CASES[case]["loss"].keys())
    assert len(beside) - len(moments) == wanted
    assert all(value.isfinite().all() for value in beside.values())
    assert all(value.abs().max() > 0 for key, value in moments.items() if "decoder" in key)


@pytest.mark.parametrize("move, case", MOVES)
def test_on_other_ranks_the_next_batch_is_the_same(
    results: Results, move: tuple[int, int], case: str
) -> None:
    (source, world_size), (one,) = move, results("elsewhere", 1)
    wanted = one[case, source]["batch"]
    every = [rank[case, source]["batch"] for rank in results("elsewhere", world_size)]
    assert all(found["step"] == HALF and torch.equal(found["plan"], wanted["plan"]) for found in every)
    assert torch.equal(torch.cat([found["slots"] for found in every]), wanted["slots"])
    assert torch.equal(torch.cat([found["inputs"] for found in every]), wanted["inputs"])


@pytest.mark.parametrize("move, case", [(move, case) for move, case in MOVES if "bf16" not in case])
def test_on_other_ranks_the_next_gradient_is_that_of_one(
    results: Results, move: tuple[int, int], case: str
) -> None:
    """Gradients are read from the moments: what a step added to the mean, or to the momentum."""
    (source, world_size), (one,) = move, results("elsewhere", 1)
    wanted = _gradients(one[case, source])
    for rank in results("elsewhere", world_size):
        error = distance(_gradients(rank[case, source]), wanted)
        print(f"{case}, {source} to {world_size}: {error:.1e}")
        assert error <= 1e-5


def _gradients(found: dict[str, Any]) -> dict[str, Tensor]:
    before, after = found["begins"][1], found["moments"]
    made = {}
    for key, value in after.items():
        kept, name = before.get(key, torch.zeros(())), key.rpartition("/")[2]
        if name == "exp_avg":
            made[key] = (value.double() - 0.9 * kept.double()) / 0.1
        elif name == "momentum_buffer":
            made[key] = value.double() - 0.9 * kept.double()
    return made


def test_a_turn_whose_loss_is_not_finite_ends_the_run_too(results: Results) -> None:
    (found,) = results("a_turn_fails", 1)
    assert found["taken"] == 1 and "stage stage, step 2: the loss discriminator is nan" in found["said"]
    assert {*found["left"]} == {"batch.json", "checkpoint.json", "complete", "state.safetensors"}
