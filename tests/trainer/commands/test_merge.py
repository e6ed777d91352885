"""A recipe that names a merged set: the batches, keys and errors of one that names its members; the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import tiny_run
from typer.testing import CliRunner

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, MERGED
from embae.datasets.merging.merge import merge
from embae.datasets.readers.read import read_records
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.commands.app import app
from embae.trainer.recipe.load import check_recipe as recipe_of
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.preflight import check_run
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runs.stage_key import stage_keys


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Links to the small datasets, and a merged set of the two sources."""
    for name in ("square", "tower", "park"):
        (tmp_path / name).symlink_to(tiny_run.shards() / name)
    merge([tmp_path / "square", tmp_path / "tower"], tmp_path / "merged", {}, duplicates=False)
    return tmp_path


def recipe(root: Path, *sources: str, **changes: Any) -> Recipe:
    return recipe_of(tiny_run.tree(data__root=str(root), data__sources=list(sources), **changes), "tiny")


def batches(found: Recipe, stage: str) -> list[list[tuple[str, str]]]:
    """(dataset, key) of every image of the first 30 batches."""
    plan, said = open_sampler(found, stage), []
    for step in range(30):
        places = zip(*plan.view.locate(plan.plan(step)), strict=True)
        said.append([(plan.view.indexes[number].name, plan.view.indexes[number].key(row)) for number, row in places])
    return said


@pytest.mark.parametrize("stage", ["embedding", "autoencoder"])
def test_a_merged_set_trains_the_batches_of_its_members(root: Path, stage: str) -> None:
    named, merged = recipe(root, "square", "tower"), recipe(root, "merged")
    check_run(merged, world_size=2)
    plans = [open_sampler(found, stage) for found in (named, merged)]
    assert all(np.array_equal(plans[0].plan(step), plans[1].plan(step)) for step in range(30))
    assert batches(named, stage) == batches(merged, stage)
    assert {name for batch in batches(merged, stage) for name, _ in batch} == {"square", "tower"}
    assert stage_keys(named) == stage_keys(merged)  # so that a comparison trains the stage once


def test_weights_of_the_card_and_of_the_recipe(root: Path) -> None:
    def share(**changes: Any) -> float:
        found = batches(recipe(root, "merged", **changes), "embedding")
        return sum(batch[0][0] == "tower" for batch in found) / len(found)

    by_images, keys = stage_keys(recipe(root, "merged")), {}
    merge([root / "square", root / "tower"], root / "merged", {"square": 1, "tower": 4}, duplicates=False)
    assert abs(share() - 0.8) < 0.05
    keys = stage_keys(recipe(root, "merged"))
    assert keys["embedding"] != by_images["embedding"]
    assert abs(share(stages__embedding__data__weights={"square": 9, "tower": 1}) - 0.1) < 0.05


def test_sets_with_the_same_members_and_weights_are_distinguished(root: Path) -> None:
    """Weights share out the images of their set, so in one set of all members they mean other batches."""
    records = read_records(
        "synthetic",
        Path(),
        {"domain": "campus", **{key: str(value) for key, value in tiny_run.OPTIONS.items()}, "identities": "24"},
    )
    write_shards("meadow", records, root, source={}, options=ShardOptions(workers=1))
    names = ["square", "tower", "park", "meadow"]
    for name, members in {"all": names, "some": ["square", "tower"], "others": ["park", "meadow"]}.items():
        merge([root / member for member in members], root / name, {member: 1.0 for member in members}, duplicates=False)
    whole, parts = recipe(root, "all"), recipe(root, "some", "others")
    assert batches(whole, "embedding") != batches(parts, "embedding")
    assert stage_keys(whole)["embedding"] != stage_keys(parts)["embedding"]


def test_members_and_other_sources_do_not_clash(root: Path) -> None:
    with pytest.raises(DataError, match=r"the dataset square \(.*\) is listed twice; name it once, directly or in one"):
        check_run(recipe(root, "merged", "square"), 1)
    merge([root / "tower", root / "park"], root / "others", {}, duplicates=False)
    with pytest.raises(DataError, match=r"the dataset tower \(.*\) is listed twice"):
        check_run(recipe(root, "merged", "others"), 1)
    check_run(recipe(root, "square", "others"), 1)
    found = batches(recipe(root, "square", "others"), "embedding")
    assert {batch[0][0] for batch in found} == {"square", "tower", "park"}


def test_a_merged_set_is_no_target(root: Path) -> None:
    with pytest.raises(DataError, match=r"merged is a merged set .*; expected one: name a member"):
        check_run(recipe(root, "square", "tower", data__target="merged"), 1)
    with pytest.raises(DataError, match=r"merged is a merged set .*; expected one: name a member"):
        check_run(recipe(root, "square", "tower", data__target="merged", evaluate={}), 1)


def test_a_changed_member_is_refused_before_anything_starts(root: Path) -> None:
    before = stage_keys(recipe(root, "merged"))
    (root / "tower").unlink()
    shutil.copytree(tiny_run.shards() / "park", root / "tower")
    card = root / "tower" / CARD
    card.write_text(card.read_text().replace("name: park", "name: tower"))
    with pytest.raises(DataError) as caught:
        check_run(recipe(root, "merged"), 1)
    assert "merged.yaml: tower: " in str(caught.value) and "has changed since" in str(caught.value)
    assert "\n" not in str(caught.value)
    merge([root / "square", root / "tower"], root / "merged", {}, duplicates=False)
    assert stage_keys(recipe(root, "merged"))["embedding"] != before["embedding"]


def test_the_command_merges_reports_and_inspects(root: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    said = run("merge", root / "square", root / "tower", "--out", root / "pair", "--weight", "square=1",
               "--weight", "tower=2.5")
    assert "pair: 2 datasets" in said and "No image of one dataset is near any of another's." in said
    assert (root / "pair" / "duplicates.csv").read_text().count("\n") == 1
    shown = run("inspect", root / "pair")
    assert all(word in shown for word in ("square", "tower", "2.5"))
    told = json.loads(run("inspect", root / "pair", "--json"))
    assert told["images"] == sum(len(Index.open(root / name)) for name in ("square", "tower"))
    assert [member["weight"] for member in told["members"]] == [1.0, 2.5]
    run("merge", root / "square", root / "tower", "--out", root / "pair", "--no-duplicates")
    assert [path.name for path in (root / "pair").iterdir()] == [MERGED]
    assert yaml.safe_load((root / "pair" / MERGED).read_text())["members"][0]["weight"] is None


@pytest.mark.parametrize("words, message", [
    (["--weight", "square"], "--weight square: expected NAME=NUMBER"),
    (["--weight", "square=1", "--weight", "square=2"], "--weight: names a dataset twice"),
    (["--weight", "square=1"], "--weight: tower has none"),
])
def test_what_the_command_refuses(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CliRunner().invoke(app, ["merge", str(root / "square"), str(root / "tower"), "--out", str(root / "x"), *words],
                           catch_exceptions=False)
    assert not (root / "x").exists()
    with pytest.raises(DataError, match="--verify and --sheet are for one dataset"):
        CliRunner().invoke(app, ["inspect", str(root / "merged"), "--verify"], catch_exceptions=False)
