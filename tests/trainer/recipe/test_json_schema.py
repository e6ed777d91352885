"""The JSON schema of recipes: what is shipped fits it, and what is misspelt does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from embae.trainer.commands.app import app
from embae.trainer.recipe.json_schema import recipe_schema
from embae.trainer.recipe.load import dump_recipe, load_recipe
from embae.trainer.recipe.shipped import SETTINGS, read_text, shipped_names
from embae.trainer.recipe.trees import parse_tree

SCHEMA = Draft202012Validator(recipe_schema())


def wrong(tree: Any) -> list[str]:
    """``path: message`` of every mistake."""
    return sorted(f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(tree))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("folder", ["", SETTINGS])
def test_all_that_is_shipped_fits_as_it_is_written(folder: str) -> None:
    assert shipped_names(folder)
    for name in shipped_names(folder):
        assert wrong(parse_tree(read_text(name, folder)[0], name)) == [], name


def test_a_resolved_recipe_fits_too() -> None:
    for name in ("embae-cam", "pul", "adapt-best"):
        assert wrong(yaml.safe_load(dump_recipe(load_recipe(name)))) == []


@pytest.mark.parametrize("text, place, key", [
    ("modell: {}", "$", "modell"),
    ("model: {nuisanse: {}}", "$.model", "nuisanse"),
    ("data: {rot: shards}", "$.data", "rot"),
    ("data: {cache: {gb: 3}}", "$.data.cache", "gb"),
    ("scoring: {ttta: flip}", "$.scoring", "ttta"),
    ("checkpoints: {evry: 3}", "$.checkpoints", "evry"),
    ("defaults: {optimiser: {}}", "$.defaults", "optimiser"),
    ("stages: {embedding: {epoch: 3}}", "$.stages.embedding", "epoch"),
    ("stages: {embedding: {optimizer: {rate: 1.0}}}", "$.stages.embedding.optimizer", "rate"),
    ("stages: {embedding: {data: {p: 3}}}", "$.stages.embedding.data", "p"),
    ("stages: {embedding: {data: {augment: {flipp: true}}}}", "$.stages.embedding.data.augment", "flipp"),
    ("stages: {embedding: {parts: {bakbone: train}}}", "$.stages.embedding.parts", "bakbone"),
    ("stages: {embedding: {loss: {tripplet: {}}}}", "$.stages.embedding.loss", "tripplet"),
    ("stages: {cluster: {cluster: {dbscan: {epsilon: 0.5}}}}", "$.stages.cluster.cluster.dbscan", "epsilon"),
])
def test_a_misspelt_key_is_refused_where_it_stands(text: str, place: str, key: str) -> None:
    (said,) = wrong(yaml.safe_load(text))
    assert said.startswith(f"{place}: ") and repr(key) in said


@pytest.mark.parametrize("text, place", [
    ("rounds: 101", "$.rounds"),
    ("run: [one, [two, [three]]]", "$.run[1][1]"),
    ("stages: {embedding: {parts: {backbone: trained}}}", "$.stages.embedding.parts.backbone"),
    ("stages: {'a b': {}}", "$.stages"),
    ("data: {image: [256]}", "$.data.image"),
    ("seed: -1", "$.seed"),
])
def test_a_value_that_cannot_be_is_refused(text: str, place: str) -> None:
    assert [said.split(": ")[0] for said in wrong(yaml.safe_load(text))] == [place]


def test_keys_say_what_the_sources_say_of_them() -> None:
    stage = recipe_schema()["$defs"]["Stage"]["properties"]
    assert stage["ema"]["description"].startswith("Decay per step of a moving average")
    assert stage["loss"]["$ref"] == "#/$defs/Loss"


def test_the_command_prints_or_writes_it(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["recipes", "schema"])
    assert json.loads(printed.stdout) == recipe_schema()
    path = tmp_path / "to" / "recipe.json"
    assert CliRunner().invoke(app, ["recipes", "schema", "--out", str(path)]).exit_code == 0
    assert json.loads(path.read_text()) == recipe_schema()
