"""Whole small runs over real shards: what depends on the seed, on labels, on the cache, and what does not."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.noise_datasets import PlainNoise
from helpers.ranks import on_ranks
from helpers.toy_models import KEYS, distance
from safetensors.torch import load_file

from embae.datasets.index.records import Record
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.recipe import load as recipes
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals

SIZE = (32, 16)
ADAPTED = ("target-nuisance", "target-embedding")


def _records(first: int, identities: int, images: int, cameras: int) -> list[Record]:
    return [
        Record(
            f"k{(7 * number) % 100:02d}_{number}",
            "train",
            number // images,
            number % cameras,
            PlainNoise(first + number),
        )
        for number in range(identities * images)
    ]


def _shards(folder: Path) -> None:
    """A source and a target, and the target once more without its labels."""
    target = _records(500, 4, 5, 2)
    nulled = [replace(record, pid=None) for record in target]
    for root, name, records in (
        ("labelled", "source", _records(0, 5, 6, 3)),
        ("labelled", "target", target),
        ("nulled", "target", nulled),
    ):
        write_shards(
            name, records, folder / root, source={"reader": "test"}, options=ShardOptions(workers=1), progress=silent
        )
    (folder / "nulled" / "source").symlink_to(folder / "labelled" / "source")


@contextlib.contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def _recipe(
    root: Path, *, run: list[str] | None = None, seed: int = 0, start: str = "embedding", **changes: Any
) -> Recipe:
    """The stages of embae-cam on two small datasets."""

    def of(init: str, data: dict[str, Any], loss: str, **parts: str) -> dict[str, Any]:
        return {
            "init": init,
            "parts": parts,
            "data": {**data, "augment": {"flip": True}},
            "loss": {loss: {}},
            "epochs": 1,
            "optimizer": {"name": "adam", "lr": 1e-3},
            **changes,
        }

    target, source = {"from": "target", "batch": 7}, {"from": "sources", "batch": 8}
    stages = {
        "embedding": of(
            "random",
            {"from": "sources", "P": 3, "K": 4},
            "triplet",
            backbone="train",
            embedding="train",
            nuisance="absent",
            decoder="absent",
        ),
        "autoencoder": of(
            start, source, "reconstruction", backbone="frozen", embedding="frozen", nuisance="train", decoder="train"
        ),
        "target-nuisance": {
            **of(
                "autoencoder",
                target,
                "reconstruction",
                backbone="frozen",
                embedding="frozen",
                nuisance="train",
                decoder="frozen",
            ),
            "reinit": ["nuisance"],
        },
        "target-embedding": of(
            "target-nuisance",
            target,
            "reconstruction",
            backbone="frozen",
            embedding="train",
            nuisance="frozen",
            decoder="train",
        ),
    }
    return recipes.check_recipe(
        {
            "name": "toy",
            "seed": seed,
            "model": KEYS.model_dump(),
            "data": {
                "root": str(root),
                "sources": ["source"],
                "target": "target",
                "image": list(SIZE),
                "loader": "webdataset",
                "threads": 1,
            },
            "run": run or list(stages),
            "stages": stages,
        },
        "toy",
    )


def _run(recipe: Recipe, run: Path, world: World) -> dict[str, str]:
    """SHA-256 of every file of every export."""
    from embae.trainer.training.run import train

    train(recipe, run, world, StopSignals())
    return {
        f"{stage}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for stage in recipe.run
        for file in sorted((run / stage / "export").iterdir())
    }


@on_ranks(1, 2)
def whole_runs(world: World, folder: Path) -> dict[str, Any]:
    """The same run twice, once more with the target's labels nulled, and its first stage from another seed."""
    import torch.distributed as dist

    if world.first and not (folder.parent / "shards").exists():  # launches share them
        _shards(folder.parent / "shards")
    dist.barrier()
    labelled, nulled = (folder.parent / "shards" / root for root in ("labelled", "nulled"))
    run = None if world.world_size == 1 else ["embedding", "autoencoder"]
    found = {name: _run(_recipe(labelled, run=run), folder / name, world) for name in ("once", "again")}
    if world.world_size == 1:
        found["nulled"] = _run(_recipe(nulled), folder / "nulled-run", world)
        found["other seed"] = _run(_recipe(labelled, seed=1, run=["embedding"]), folder / "other", world)
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_same_seed_is_the_same_model(computed: Callable[..., Any], world_size: int) -> None:
    found = computed(whole_runs, world_size)[0]
    assert len(found["once"]) == (8 if world_size == 1 else 4)
    assert found["again"] == found["once"]


def test_another_seed_is_another_model(computed: Callable[..., Any]) -> None:
    found = computed(whole_runs, 1)[0]
    assert found["other seed"]["embedding/model.safetensors"] != found["once"]["embedding/model.safetensors"]


def test_labels_of_the_target_never_reach_adaptation(
    computed: Callable[..., Any], rank_folder: Callable[[int], Path]
) -> None:
    found = computed(whole_runs, 1)[0]
    cards = [
        (rank_folder(1).parent / "shards" / root / "target" / "dataset.yaml").read_text()
        for root in ("labelled", "nulled")
    ]
    assert cards[0] != cards[1]
    for stage, file in itertools.product(ADAPTED, ("model.safetensors", "model.json")):
        assert found["nulled"][f"{stage}/{file}"] == found["once"][f"{stage}/{file}"], stage


def test_adaptation_moved_what_it_trains_alone(
    computed: Callable[..., Any], rank_folder: Callable[[int], Path]
) -> None:
    computed(whole_runs, 1)
    before, after = (load_file(rank_folder(1) / "once" / stage / "export" / "model.safetensors") for stage in ADAPTED)
    for key, value in before.items():
        trains = key.startswith(("embedding", "decoder"))
        assert torch.equal(after[key], value) != trains, key


def test_ranks_do_not_change_the_model_by_more_than_rounding(
    computed: Callable[..., Any], rank_folder: Callable[[int], Path]
) -> None:
    """Of the first stage, whose three steps of Adam each go by the learning rate whatever the gradient's size."""
    states = []
    for world_size in (1, 2):
        computed(whole_runs, world_size)
        states.append(load_file(rank_folder(world_size) / "once" / "embedding" / "export" / "model.safetensors"))
    assert distance(*states) < 1e-3


@on_ranks(1)
def with_and_without_cache(world: World, folder: Path) -> dict[str, Any]:
    """Stages on a frozen backbone, from features computed once and from images at each step; which files that left."""
    from embae.trainer.training.run import train

    found: dict[str, Any] = {"first run": _files(folder / "once")}
    files = {path: path.stat().st_mtime_ns for path in (folder / "once" / "cache").glob("*.npy")}
    start = str(folder / "once" / "embedding")
    for cached in (True, False):
        run = folder / f"cached-{cached}"
        recipe = _recipe(
            folder.parent / "shards" / "labelled", run=["autoencoder", *ADAPTED], start=start, cache_features=cached
        )
        train(recipe, run, world, StopSignals())
        found[f"cached {cached}"] = {
            stage: load_file(run / stage / "export" / "model.safetensors") for stage in recipe.run
        }
        found[f"files {cached}"] = _files(run)
        found[f"loaders {cached}"] = {
            record["loader"]
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if (record := json.loads(line))["kind"] == "train"
        }
    found["untouched"] = all(path.stat().st_mtime_ns == at for path, at in files.items())
    return found


def _files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "cache").glob("*.npy")) if (run / "cache").exists() else []


def test_cached_features_train_the_same_model(computed: Callable[..., Any]) -> None:
    computed(whole_runs, 1)
    found = computed(with_and_without_cache, 1)[0]
    assert found["loaders True"] == {"features"} and found["loaders False"] == {"webdataset"}
    for stage, state in found["cached True"].items():
        error = distance(state, found["cached False"][stage])
        print(f"{stage}: {error:.1e}")
        # The same images in batches of other sizes round otherwise, and Adam makes a step of every difference.
        assert error < 1e-3


def test_one_cache_serves_the_stages_of_a_backbone_and_a_dataset(computed: Callable[..., Any]) -> None:
    found = computed(with_and_without_cache, 1)[0]
    assert len(found["first run"]) == 2  # source and target
    assert found["files True"] == found["first run"]  # same key in another run
    assert found["files False"] == []


@on_ranks(1, 2)
def cache_keys(world: World, folder: Path) -> dict[str, Any]:
    """Files after asking for features of one view under several conditions, and the features themselves."""
    from embae.trainer.inference.features import FeatureLoader, cached_features
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.model.embae import EmbAE
    from embae.trainer.runs.stage_data import open_sampler

    recipe = _recipe(folder.parent / "shards" / "labelled")
    sampler = open_sampler(recipe, "target-nuisance")
    work = Work(
        sampler,
        recipe.data.spec,
        Augment(flip=True),
        seed=0,
        stage="s",
        start=0,
        stop=2,
        rank=world.rank,
        world_size=world.world_size,
    )
    torch.manual_seed(0)
    model = EmbAE(KEYS, {"backbone": "frozen", "embedding": "frozen"}).eval()
    backbone = model.backbone
    own = folder / "cache-keys"

    def ask(work: Work = work, bf16: bool = False) -> np.ndarray:
        inference = Inference(work.spec, world, own, Reading("webdataset", 1))
        cached = cached_features(model, sampler.view, inference, bf16=bf16)
        assert cached.rank_seconds > 0
        return cached.features

    def count() -> int:
        return len(list(own.glob("*.npy")))

    features = ask()
    counts = {"first": count()}
    (file,) = own.glob("*.npy")
    before = file.stat().st_mtime_ns
    ask()
    counts["again"] = count()
    untouched = file.stat().st_mtime_ns == before
    ask(replace(work, spec=replace(work.spec, height=40)))
    counts["image size"] = count()
    ask(replace(work, spec=replace(work.spec, mean=(0.5, 0.5, 0.5))))
    counts["normalisation"] = count()
    ask(bf16=True)
    counts["precision"] = count()
    batches = list(FeatureLoader(work, features, world.device))
    wanted = [_computed(backbone, work, number) for number in range(len(batches))]
    with torch.no_grad():
        next(buffer for name, buffer in backbone.named_buffers() if "running_mean" in name).add_(1)
    ask()
    counts["weights"] = count()
    return {
        "counts": counts,
        "untouched": untouched,
        "features": torch.from_numpy(features[:]),
        "batches": [batch.inputs for batch in batches],
        "wanted": wanted,
        "flips": [work.part(number)[1].flip.tolist() for number in range(len(batches))],
    }


def _computed(backbone: torch.nn.Module, work: Work, number: int) -> torch.Tensor:
    """Features of a batch as the loader gives it, decoded and flipped."""
    from embae.datasets.loading.open_loader import open_loader

    loader = open_loader(work, loader="webdataset", device=torch.device("cpu"), threads=1)
    with torch.inference_mode():
        found = backbone(next(itertools.islice(iter(loader), number, None)).inputs)
    loader.close()
    return found.clone()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_cache_is_found_by_all_that_it_depends_on(computed: Callable[..., Any], world_size: int) -> None:
    ranks = computed(cache_keys, world_size)
    found = ranks[0]
    # Other ranks' shares do not change the file.
    assert found["counts"] == {
        "first": 1,
        "again": 1,
        "image size": 2,
        "normalisation": 3,
        "precision": 4,
        "weights": 5,
    }
    assert found["untouched"]
    assert found["features"].shape == (20, 2, 256)
    flips = [flip for rank in ranks for batch in rank["flips"] for flip in batch]
    assert 0 < sum(flips) < len(flips)
    assert all(torch.equal(rank["features"], found["features"]) for rank in ranks)
    assert not torch.equal(found["features"][:, 0], found["features"][:, 1])
    for rank in ranks:
        for batch, wanted in zip(rank["batches"], rank["wanted"], strict=True):
            torch.testing.assert_close(batch, wanted, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_number_of_ranks(computed: Callable[..., Any]) -> None:
    one, two = (computed(cache_keys, world_size)[0]["features"] for world_size in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
