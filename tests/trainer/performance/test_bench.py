"""``embae bench``: what it measures of every kind of stage, what it says of it, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import noise_datasets, tiny_run
from helpers.ranks import on_ranks
from helpers.tiny_run import embae
from helpers.toy_models import RECONSTRUCTION, ToyView, heads, images, model, parts_in, share_of, stage

from embae.trainer.performance.bench_report import Bench, Exchanges, Timing
from embae.trainer.runtime.distributed import World

pytestmark = pytest.mark.ranks

ALONE = {"loader", "model", "forward", "backward", "optimizer", "step"}


def test_bench_measures_a_stage_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "shards").symlink_to(tiny_run.shards())
    (tmp_path / "tmp").mkdir()
    tiny_run.write(tmp_path, tiny_run.tree(stages__embedding__init="hub"))  # which cannot be fetched, and need not be
    words = ("bench", "tiny.yaml", "--nproc", 2, "--steps", 3, "--json", "out/found.json")
    done = embae(*words, cwd=tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    text, found = " ".join(done.stdout.split()), json.loads((tmp_path / "out" / "found.json").read_text())
    assert text.startswith("tiny, stage embedding: 6 images a step, 2 ranks on cpu, fp32, loader dali; ")
    assert text.endswith(f" {found['verdict']}") and found["verdict"].count(". ") == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert set(found["seconds"]) == ALONE | {"exchanges"} and found["sent"]["number"] > 0
    assert all(0 < one["low"] <= one["median"] <= one["high"] for one in found["seconds"].values())
    assert found["limit"] in ("loader", "model", "exchanges")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shards", "tiny.yaml", "tmp"]
    assert not list((tmp_path / "tmp").glob("embae-*")) and not list((tmp_path / "tmp").glob("bench-*"))


@pytest.mark.parametrize("words, said", [
    (["--stage", "cluster-1"], "--stage cluster-1: trains nothing (cluster), so there are no steps to measure"),
    (["--stage", "embeding"], "--stage embeding: no such stage; those that train: classification, retrain"),
    (["data.sources=[lake]"], "lake: no such dataset"),
])  # fmt: skip
def test_what_cannot_be_measured_is_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = embae("bench", "pul", "rounds=1", f"data.root={tiny_run.shards()}", "data.target=park", *words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@on_ranks(1)
def stages_alone(world: World, folder: Path) -> dict[str, Any]:
    """Stages of every kind, none of which has what it starts from; and what is in their folder afterwards."""
    from embae.trainer.performance.bench import bench
    from embae.trainer.recipe.load import load_recipe
    from embae.trainer.runs.stage_data import open_trial_sampler

    root, found = noise_datasets.shared_shards(world, folder), {}
    for recipe, name in (("embae-cam", "target-nuisance"), ("aae", "adversarial"), ("pul", "retrain"),
                         ("embae-narrow", "target-embedding")):  # fmt: skip
        settings = noise_datasets.settings(folder, root / "labelled")
        loaded = load_recipe(recipe, [f"data.root={root / 'labelled'}"], [settings])
        # Of several rounds the first.
        name = next(stage for stage in loaded.run if stage.startswith(name))
        empty = folder / f"bench-{recipe}"
        empty.mkdir()
        found[recipe] = bench(loaded, name, open_trial_sampler(loaded, name), world, empty, steps=2).tree()
        found[recipe]["left"] = [path.name for path in empty.iterdir()]
    return found


def test_every_kind_of_stage_is_measured_without_what_it_starts_from(computed: Callable[..., Any]) -> None:
    found = computed(stages_alone, 1)[0]
    assert {recipe: one["loader"] for recipe, one in found.items()} == {
        "embae-cam": "features", "aae": "features", "pul": "webdataset", "embae-narrow": "features"}  # fmt: skip
    for recipe, one in found.items():
        assert set(one["seconds"]) == ALONE and one["sent"]["number"] == 0, recipe
        assert all(name.startswith("features-") for name in one["left"])


@on_ranks(2)
def exchanged(world: World, folder: Path) -> dict[str, Any]:
    """Exchanges of a step by ZeRO stage, and whether making them again changes weights."""
    from embae.trainer.performance.bench import record_exchanges, replay_exchanges
    from embae.trainer.performance.exchanges import bytes_sent
    from embae.trainer.training.engine import Engine
    from embae.trainer.training.objective import Objective

    def known() -> None:
        dist.all_reduce(torch.ones(1000))
        dist.all_gather([torch.ones(10), torch.ones(10)], torch.ones(10))
        dist.broadcast(torch.ones(100), 0)

    found: dict[str, Any] = {"known": [bytes_sent(call) for call in record_exchanges(known)]}
    view, parts = ToyView(pid=[0] * 8, camid=[0] * 8), parts_in("frozen", "train", "frozen", "train")
    for zero in range(4):
        keys = stage(parts, RECONSTRUCTION, deepspeed={"zero_stage": zero}, batch_norm={"embedding": "running"})
        made = model(parts, heads(1), running=["embedding"])
        engine = Engine(Objective(made, keys.loss), keys, largest=4)  # type: ignore[arg-type]
        batches = share_of(view, images(8), np.arange(8), world.rank, 2)

        def step(engine: Any = engine, batches: Any = batches) -> None:
            engine.step(batches, 0.01)

        step()
        calls = record_exchanges(step)
        before = engine.state()
        replay_exchanges(calls)
        same = all(torch.equal(value, before[key]) for key, value in engine.state().items())
        sizes = [value.numel() for value in made.parameters() if value.requires_grad] if zero < 3 else []
        found[f"ZeRO {zero}"] = [(str(call[0]), bytes_sent(call)) for call in calls], sum(sizes), same
        engine.close()
    return found


def test_exchanges_are_those_of_the_step(computed: Callable[..., Any]) -> None:
    found = computed(exchanged, 2)[0]
    # Of two ranks each sends, by the ring algorithm, all of what is reduced, and half of what is gathered.
    assert found["known"] == [4000, 40, 200]
    trained = found["ZeRO 0"][1]
    for zero in range(4):
        calls, _, same = found[f"ZeRO {zero}"]
        assert same, zero
        # Single numbers are the report's, and whether a gradient overflowed.
        reduced = [size for call, size in calls if "reduce" in call and size > 8]
        gathered = sum(size for call, size in calls if "gather" in call)
        # At ZeRO 1 and 2 DeepSpeed reduces all gradients on all ranks here; at 3 frozen parts are gathered too.
        assert reduced == [trained * (2 if zero == 3 else 4)], zero
        assert gathered > trained * 2 if zero == 3 else gathered == trained * 2 * (zero > 0), zero


def _found(**seconds: float) -> Bench:
    timings = {name: Timing(value, value, value) for name, value in seconds.items()}
    return Bench("r", "s", 2, "cuda", 72, 20, "dali", "fp32", 4, (288, 144), Exchanges(3, 1e6), timings)


PHASES = {"forward": 0.02, "backward": 0.05, "optimizer": 0.01}


@pytest.mark.parametrize("seconds, changed, limit, said", [
    ({"loader": 0.23, "model": 0.08}, {}, "loader", "The loader is the limit: 313 images/s against 900 of the model; "
     "give data.threads (now 4 a rank) more CPUs, or shard with --size 288x144."),
    ({"loader": 0.23, "model": 0.08}, {"resize": None}, "loader", "The loader is the limit: 313 images/s against 900 "
     "of the model; give data.threads (now 4 a rank) more CPUs."),
    ({"loader": 0.01, "model": 0.08}, {}, "model", "The model is the limit: 900 images/s against 7,200 of the loader, "
     "most of it in backward; give it precision: bf16, or more ranks, or a smaller model.backbone or data.image."),
    ({"loader": 0.01, "model": 0.08, "exchanges": 0.06}, {}, "exchanges", "Exchanges between ranks are the limit: "
     "alone they take 75 % of the model's time; give the ranks a faster network, a larger batch, or start fewer of "
     "them."),
    ({"loader": 0.05, "model": 0.08, "step": 0.12}, {"device": "cpu"}, "model", "The model is the limit: 900 images/s "
     "against 1,440 of the loader, most of it in backward; give it more ranks, or a smaller model.backbone or "
     "data.image; loader and model share the CPUs, and together reach 600 images/s."),
])  # fmt: skip
def test_the_limit_is_said_in_a_sentence(seconds: Any, changed: Any, limit: str, said: str) -> None:
    found = replace(_found(**{**PHASES, "step": 0.09, **seconds}), **changed)
    assert (found.limit, found.verdict()) == (limit, said)
    assert " ".join(found.text().split()).endswith(f" {said}")
