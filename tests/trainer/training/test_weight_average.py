"""The average of the weights is that of its definition, on any ranks, at any ZeRO stage, and is what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.noise_datasets import SIZE, shards
from helpers.run_parts import begin_stage
from helpers.toy_models import KEYS, parts_in
from torch import Tensor

from embae.trainer.recipe import load as recipes
from embae.trainer.runtime.distributed import World

pytestmark = pytest.mark.ranks

DECAY, STEPS = 0.4, 9  # (1 + t) / (10 + t) reaches it at step 6


def trained(world: World, folder: Path) -> dict[int, Any]:
    """By ZeRO stage: the model after each step, the exported one, and which of it trains."""
    from embae.trainer.model.saved import SavedModel

    found = {}
    for zero in (0, 2, 3):
        run = folder / f"run-{zero}"
        run.mkdir(exist_ok=True)
        recipe = recipes.check_recipe({
            "name": "toy", "model": {**KEYS.model_dump(), "nuisance": {"dim": 6}}, "run": ["stage"],
            "data": {"root": str(folder.parent / "shards" / "labelled"), "sources": ["one", "two"], "target": "target",
                     "image": list(SIZE), "loader": "webdataset", "threads": 1},
            "stages": {"stage": {
                "init": "random", "steps": STEPS, "ema": DECAY, "optimizer": {"name": "adam", "lr": 1e-2},
                "parts": parts_in("frozen", "train", "train", "train"), "deepspeed": {"zero_stage": zero},
                "data": {"from": "sources", "batch": 10}, "loss": {"reconstruction": {}}}},
        }, "toy")  # fmt: skip
        stage = begin_stage(recipe, "stage", run, world)
        states = [stage.updates.state()]
        states += [stage.updates.state() for _ in stage.train()]
        stage.export()
        stage.close()
        snapshot = stage.state() if zero == 0 else {}
        found[zero] = {
            "states": states,
            "export": SavedModel.open(run / "stage" / "export").state(),
            "snapshot": snapshot,
        }
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder, found = tmp_path_factory.mktemp("averaging"), {}
    shards(folder / "shards")
    for world_size in (1, 2):
        (place := folder / str(world_size)).mkdir()
        name = f"{__file__}:trained"
        wrong = ranks.launch([name], world_size, place, timeout_s=200)
        assert not wrong, wrong
        found[world_size] = [torch.load(ranks.result_file(place, name, rank), weights_only=True)
                             for rank in range(world_size)]
    return found


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_export_is_the_average_of_the_weights(results: dict[int, list[Any]], world_size: int, zero: int) -> None:
    found = results[world_size][0][zero]
    states: list[dict[str, Tensor]] = found["states"]
    moved = 0
    for key, value in found["export"].items():
        if value.is_floating_point() and not key.startswith("backbone"):
            average = states[0][key].double()
            for step, state in enumerate(states[1:]):
                decay = min(DECAY, (1 + step) / (10 + step))
                average = decay * average + (1 - decay) * state[key].double()
            torch.testing.assert_close(value.double(), average, rtol=1e-5, atol=1e-6)
            moved += not torch.allclose(value, states[-1][key], rtol=1e-4)
        else:  # frozen, or a count
            assert torch.equal(value, states[-1][key]), key
    assert moved > 5


def test_what_is_scored_in_training_is_what_is_exported(results: dict[int, list[Any]]) -> None:
    for ranks_found in results.values():
        for found in ranks_found:
            assert all(torch.equal(value, found[0]["snapshot"][key]) for key, value in found[0]["export"].items())


def test_an_average_of_other_parameters_is_refused() -> None:
    from helpers.toy_models import model

    from embae.trainer.training.weight_average import Average

    average = Average(model(parts_in("frozen", "train")), 0.9)
    with pytest.raises(ValueError, match="no average of what this stage trains"):
        average.restore({})
