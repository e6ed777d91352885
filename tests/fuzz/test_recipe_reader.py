"""Recipes as damaged text, as bent trees, with hostile overrides and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fuzzing import HOSTILE, ODD, bent, damaged, edits, inputs, tree_edits, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import check_recipe, dump_recipe, load_recipe
from embae.trainer.recipe.shipped import read_text, shipped_names

SHIPPED = {name: read_text(name)[0] for name in shipped_names()}
TREES: dict[str, Any] = {name: yaml.safe_load(text) for name, text in SHIPPED.items()}
SETTINGS = {name: read_text(name, "settings")[0] for name in shipped_names("settings")}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "given.yaml"


def reads_back(file: Path, *arguments: Any) -> None:
    """A recipe that is taken is written to the run folder, and must be the same when the run goes on."""
    found = load_recipe(str(file), *arguments)
    written = file.with_name("resolved.yaml")
    written.write_text(dump_recipe(found), encoding="utf-8")
    assert load_recipe(str(written)) == found


@inputs(60)
@given(name=st.sampled_from(sorted(SHIPPED)), changes=edits)
def test_damaged_text(file: Path, name: str, changes: list[tuple[str, int, int]]) -> None:
    file.write_bytes(damaged(SHIPPED[name].encode(), changes))
    with works_or_refuses(file, only=(RecipeError,)):
        reads_back(file)


WORDS = ["!!python/object/apply:os.system [touch gone]", "!!int x", "!!float ''", "!!bool x", "!!timestamp x",
         "!!binary x", "!!set {a}", "!!omap [a: 1]", "!x y", "&a [*a]", "&b {x: *b}", "*nobody", "<<: *b", "<<: [1]",
         "0b_", "0x_", "._", "1:59:59", ":".join(["1"] * 300) + ".5", "9" * 5000, "2001-99-99", "? [a]: b", "? {a: b}",
         "[" * 3000, "{a: " * 3000, "- " * 3000, "? " * 3000, '"\\ud800"', '"\\0"', "'", '"', "%YAML 9.9", "---", "...",
         "|", ">", "\t", "\x85", "\ufeff", "=", "~", "run:", "extends: ", "extends: given.yaml", "settings: quick",
         "rounds: 1000000000", "run: [[a, b], c]", "stages:", "defaults:", "name: x", "\n", "  ", ": ", ", ", "]", "}",
         "data: {root: 'pipe:touch gone'}", "extends: /dev/zero", "extends: http://127.0.0.1:9/"]  # fmt: skip


@inputs(60)
@given(words=st.lists(st.sampled_from(WORDS), max_size=8), name=st.sampled_from([None, *sorted(SHIPPED)]),
       place=st.integers(0, 10**6))
def test_words_of_yaml(file: Path, words: list[str], name: str | None, place: int) -> None:
    lines = SHIPPED[name].splitlines() if name else []
    at = place % (len(lines) + 1)
    text = "\n".join([*lines[:at], *words, *lines[at:]])
    file.write_text(text, encoding="utf-8")
    with works_or_refuses(file, only=(RecipeError,)):
        reads_back(file)


@inputs(100)
@given(name=st.sampled_from(sorted(TREES)), changes=tree_edits)
def test_bent_trees(file: Path, name: str, changes: list[tuple[str, int, int]]) -> None:
    tree = bent(TREES[name], changes)
    # JSON is YAML, but for a few characters; and it writes what YAML's writer refuses.
    file.write_text(json.dumps(tree), encoding="utf-8")
    with works_or_refuses(file, only=(RecipeError,)):
        reads_back(file)


@inputs(40)
@given(name=st.sampled_from(sorted(TREES)), changes=tree_edits)
def test_bent_trees_in_python(name: str, changes: list[tuple[str, int, int]]) -> None:
    tree = bent(TREES[name], changes)
    if isinstance(tree, dict) and "extends" not in tree:
        with works_or_refuses("the tree", only=(RecipeError,)):
            check_recipe(tree, "the tree")


PATHS = ["name", "seed", "model", "model.hidden", "model.backbone", "data.root", "data.sources", "data.image", "run",
         "stages", "stages.embedding", "stages.embedding.init", "stages.embedding.epochs", "stages.embedding.data.P",
         "stages.embedding.loss.triplet", "stages.nobody.epochs", "defaults", "defaults.epochs", "evaluate", "rounds",
         "extends", "settings", "stages.embedding.deepspeed.zero", "", ".", "..", "a.b.c", "name.x", "run.0"]


@inputs(60)
@given(pairs=st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from([*HOSTILE[:-9], *WORDS])), min_size=1,
                      max_size=3), settings=st.sampled_from([[], ["quick"], ["nobody"], ["../x.yaml"], ["\0.yaml"]]))
def test_overrides_and_settings(file: Path, pairs: list[tuple[str, Any]], settings: list[str]) -> None:
    overrides = [f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in pairs]
    file.write_text(SHIPPED["embae-cam"], encoding="utf-8")
    with works_or_refuses(file, *settings, *(path for path, _ in pairs if path), "found no key=value",
                          only=(RecipeError,)):
        reads_back(file, overrides, settings)


@inputs(30)
@given(name=st.sampled_from(sorted(SETTINGS)), changes=edits)
def test_damaged_settings(file: Path, name: str, changes: list[tuple[str, int, int]]) -> None:
    file.write_bytes(damaged(SETTINGS[name].encode(), changes))
    with works_or_refuses(file, "embae-cam", only=(RecipeError,)):
        load_recipe("embae-cam", [], [str(file)])


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("how", ["the recipe", "extends", "settings"])
def test_what_is_no_file(tmp_path: Path, odd: Any, how: str) -> None:
    odd(tmp_path / "odd.yaml")
    (tmp_path / "good.yaml").write_text(f"extends: {tmp_path / 'odd.yaml'}\n" if how == "extends" else "{}")
    with works_or_refuses(tmp_path / "odd.yaml", only=(RecipeError,)) as refusals:
        load_recipe(str(tmp_path / ("odd.yaml" if how == "the recipe" else "good.yaml")), [],
             [str(tmp_path / "odd.yaml")] * (how == "settings"))
    assert refusals
