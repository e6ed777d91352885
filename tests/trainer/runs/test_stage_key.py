"""Keys of stages: what a result depends on changes them, and what it does not depend on leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import noise_datasets
from safetensors.torch import save_file

from embae.trainer.recipe.load import load_recipe
from embae.trainer.runs import stage_key
from embae.trainer.runs.stage_key import stage_keys

FOUR = ("embedding", "autoencoder", "target-nuisance", "target-embedding")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_datasets.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def keys(root: Path, tmp_path: Path) -> Any:
    """``keys(recipe, overrides…, at=root)``: the keys of its stages."""
    def get(recipe: str, *overrides: str, at: Path = root / "labelled") -> dict[str, str]:
        return stage_keys(load_recipe(recipe, overrides, [noise_datasets.settings(tmp_path, at)]))

    return get


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in before.keys() | after.keys() if before.get(stage) != after.get(stage)}


def test_a_key_a_stage_in_the_order_of_the_run(keys: Any) -> None:
    found = keys("embae-cam")
    assert tuple(found) == FOUR and len(set(found.values())) == 4
    assert all(len(key) == 24 and set(key) <= set("0123456789abcdef") for key in found.values())
    assert found == keys("embae-cam")


SAME = ["stages.embedding.log_every=3", "stages.embedding.evaluate_every=5", "data.threads=7", "name=other",
        "evaluate={Row: embedding}", "scoring.tta=flip", "scoring.batch=3", "scoring.rerank=true",
        "scoring.expand=3", "data.synthetic={one: {domain: plaza}}"]


@pytest.mark.parametrize("override", SAME)
def test_what_does_not_change_the_result_leaves_the_keys(keys: Any, override: str) -> None:
    assert changed(keys("embae-cam"), keys("embae-cam", override)) == set()


TARGET = {"target-nuisance", "target-embedding"}
OTHER = {
    "seed=1": {*FOUR},
    "data.image=[40, 20]": {*FOUR},
    "data.mean=[0.5, 0.5, 0.5]": {*FOUR},
    "data.loader=dali": {*FOUR},
    "model.embedding=9": {*FOUR},
    "model.hidden=9": {*FOUR},
    "model.backbone=test_efficientnet": {*FOUR},
    "model.pooling=gem": {*FOUR},
    "model.last_stride=1": {*FOUR},
    "model.unit=true": {*FOUR},
    "data.sources=[two, one]": {*FOUR},
    "data.sources=[one]": {*FOUR},
    "model.nuisance.dim=9": {"autoencoder", *TARGET},
    "model.nuisance.per=shared": {"autoencoder", *TARGET},
    "stages.embedding.data.P=2": {*FOUR},
    "stages.embedding.sync_batch_norm=false": {*FOUR},
    "stages.embedding.ema=0.5": {*FOUR},
    "stages.autoencoder.optimizer.lr=0.5": {"autoencoder", *TARGET},
    "stages.target-nuisance.epochs=2": TARGET,
    "stages.target-nuisance.data.augment.flip=false": TARGET,
    "stages.target-embedding.parts.nuisance=train": {"target-embedding"},
    "stages.target-embedding.deepspeed.zero={reduce_bucket_size: 5}": {"target-embedding"},
}


@pytest.mark.parametrize("override", OTHER)
def test_what_changes_a_stage_changes_its_key_and_those_of_stages_behind_it(keys: Any, override: str) -> None:
    assert changed(keys("embae-cam"), keys("embae-cam", override)) == OTHER[override]


def test_the_same_stages_of_two_recipes_have_one_key(keys: Any) -> None:
    new, fix, cam, whole = (keys(name) for name in ("embae-new", "embae-fix", "embae-cam", "embae"))
    assert new["embedding"] == fix["embedding"] == cam["embedding"] == whole["embedding"]
    assert new["autoencoder"] == fix["autoencoder"] == whole["autoencoder"] != cam["autoencoder"]
    assert new["target-embedding"] != fix["target-embedding"] != whole["target-embedding"]
    calibrated = [keys(name)["calibrate"] for name in ("bn-camera", "bn-target", "features-camera", "centred-camera")]
    assert len(set(calibrated)) == 4
    assert {keys(name)["embedding"] for name in ("bn-camera", "baseline", "aae")} == {new["embedding"]}
    assert keys("mixed-batches")["embedding"] != new["embedding"]


def test_rounds_are_distinguished_by_their_labels(keys: Any) -> None:
    found = keys("pul")
    assert len(set(found.values())) == 5
    other = keys("pul", "stages.cluster.cluster.kmeans.clusters=5")
    assert changed(found, other) == {"cluster-1", "retrain-1", "cluster-2", "retrain-2"}
    assert changed(found, keys("pul", "rounds=3")) == {"cluster-3", "retrain-3"}  # more rounds go on with these


def test_other_data_changes_the_stages_that_read_it(keys: Any, root: Path, tmp_path: Path) -> None:
    before = keys("embae-cam")
    assert changed(before, keys("embae-cam", at=root / "nulled")) == TARGET
    assert changed(before, keys("embae-cam", at=root / "fewer")) == TARGET
    shutil.copytree(root / "labelled", tmp_path / "moved")
    assert changed(before, keys("embae-cam", at=tmp_path / "moved")) == set()  # where it lies plays no part
    shutil.rmtree(tmp_path / "moved" / "one")
    (tmp_path / "moved" / "one").symlink_to(root / "labelled" / "two")
    assert changed(before, keys("embae-cam", at=tmp_path / "moved")) == {*FOUR}


def test_weights_from_elsewhere_count_by_what_they_hold(keys: Any, tmp_path: Path) -> None:
    file, copy = tmp_path / "weights.safetensors", tmp_path / "copy.safetensors"
    save_file({"x": torch.zeros(3)}, str(file))
    shutil.copyfile(file, copy)
    first = keys("baseline", f"stages.embedding.init={file}")
    assert first == keys("baseline", f"stages.embedding.init={copy}")
    save_file({"x": torch.ones(3)}, str(file))
    assert first != keys("baseline", f"stages.embedding.init={file}")
    assert len({str(keys("baseline", f"stages.embedding.init={init}")) for init in ("hub", "random", file)}) == 3
    for place in ("export", "stage"):
        folder = tmp_path / place / ("export" if place == "stage" else "")
        folder.mkdir(parents=True)
        shutil.copyfile(copy, folder / "model.safetensors")
    inits = [tmp_path / "export", tmp_path / "stage", tmp_path / "stage" / "export"]
    found = [keys("baseline", f"stages.embedding.init={init}") for init in inits]
    assert found[0] == found[1] == found[2] == first


def test_what_came_later_leaves_the_keys_of_stages_without_it(root: Path, tmp_path: Path) -> None:
    """Else a comparison that is gone on with after an update would train all its stages again."""
    recipe = load_recipe("baseline", [], [noise_datasets.settings(tmp_path, root / "labelled")])
    stage = stage_key.key_content(recipe, "embedding", {})["stage"]
    assert "ema" not in stage and "window" not in stage["data"]
    model = stage_key.key_content(recipe, "embedding", {})["model"]
    assert model == {"backbone": "test_byobnet", "embedding": 8, "hidden": 16}


def test_another_method_is_another_key_of_stages_that_use_it(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {recipe: keys(recipe) for recipe in ("embae-cam", "bn-camera")}
    monkeypatch.setitem(stage_key.METHOD, "calibrate", 99)
    assert {recipe: changed(old, keys(recipe)) for recipe, old in before.items()} == {
        "embae-cam": set(), "bn-camera": {"calibrate"}}  # fmt: skip
    monkeypatch.setitem(stage_key.METHOD, "loss", 99)
    assert changed(before["embae-cam"], keys("embae-cam")) == {*FOUR}
