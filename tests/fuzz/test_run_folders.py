"""Run folders that were damaged or made up, up to where ranks would start; and what a path must not be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_run
from helpers.exported_model import an_export
from helpers.fuzzing import HOSTILE, ODD, bent, damaged, edits, inputs, tree_edits, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.evaluation.score_dataset import prepare_scoring
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.load import check_recipe as recipe_of
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.folder import write_recipe
from embae.trainer.runs.preflight import check_run
from embae.trainer.runs.same_recipe import check_same_recipe
from embae.trainer.runs.stage_folder import StageCost, finish_stage, is_done, read_cost


def recipe(**changes: Any) -> Recipe:
    return recipe_of(tiny_run.tree(**{"data__root": str(tiny_run.shards()), **changes}), "tiny")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one stage done."""
    run = tmp_path_factory.mktemp("whole") / "run"
    write_recipe(run, recipe(), 1)
    with finish_stage(run / "embedding", StageCost(17, 34, 1.5)) as partial:
        an_export(partial)
    return run


def go_on(run: Path) -> None:
    """What ``embae train`` and ``embae evaluate`` look at before anything starts."""
    check_same_recipe(run, recipe())
    check_run(recipe(), 1)
    for stage in ("embedding", "autoencoder"):
        if is_done(run, stage):
            read_cost(run, stage)
            SavedModel.open(run / stage / "export").restore()


FILES = ["recipe.yaml", "embedding/done", "embedding/export/model.json", "embedding/export/model.safetensors"]
PLACES = [*FILES, "embedding", "embedding/export", "autoencoder", "autoencoder/done", ".lock", "metrics.jsonl", "."]


@inputs(20)
@given(what=st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(ODD)), min_size=1, max_size=3))
def test_other_things_where_files_and_folders_are_wanted(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, what: list[tuple[str, Any]]
) -> None:
    run = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(whole, run)
    for place, odd in what:
        path = run / place
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.parent.is_dir():
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            odd(path)
    with works_or_refuses(run):
        go_on(run)
    with works_or_refuses(run, "pipe:touch gone") as refusals:
        prepare_scoring(run, "pipe:touch gone")  # comes as far as the dataset
    assert refusals
    shutil.rmtree(run.parent)


@inputs(12)
@given(file=st.sampled_from(FILES), changes=edits)
def test_damaged_files(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, file: str, changes: list[tuple[str, int, int]]
) -> None:
    run = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(whole, run)
    (run / file).write_bytes(damaged((run / file).read_bytes(), changes))
    with works_or_refuses(run):
        go_on(run)
    shutil.rmtree(run.parent)


@inputs(12)
@given(changes=tree_edits)
def test_bent_recipes(whole: Path, changes: list[tuple[str, int, int]]) -> None:
    path = whole / "recipe.yaml"
    before = path.read_text()
    try:
        path.write_text(yaml.safe_dump(bent(yaml.safe_load(before), changes)))
        with works_or_refuses(whole):
            go_on(whole)
    finally:
        path.write_text(before)


@inputs(40)
@given(key=st.sampled_from(["data.root", "data.target", "data.sources", "stages.embedding.init", "data.synthetic",
                            "stages.embedding.data.P", "stages.embedding.data.K", "stages.autoencoder.data.batch",
                            "model.backbone", "seed", "data.image"]),
       value=st.sampled_from(HOSTILE))
def test_recipes_that_point_elsewhere(key: str, value: Any) -> None:
    """Up to `check`: paths, urls and commands are names of files that are not there."""
    tree, at = tiny_run.tree(data__root=str(tiny_run.shards())), key.split(".")
    below = tree
    for word in at[:-1]:
        below = below[word]
    below[at[-1]] = value
    with works_or_refuses("tiny", str(tiny_run.shards()), key, f"{str(value)[:20]}"):
        check_run(recipe_of(tree, "tiny"), 1)


PATHS = ["pipe:touch gone", "pipe:cat /etc/passwd", "http://127.0.0.1:9/shards", "s3://bucket/shards", "hf-hub:a/b",
         "file:///etc", "gs://x", "| touch gone", "$(touch gone)", "{000..999}.tar", "x" * 300, "-", "~root"]


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, whole: Path) -> None:
    """Nothing is fetched, expanded or run wherever one may be given."""
    monkeypatch.chdir(tmp_path)
    with works_or_refuses(text, text.replace("//", "/")):
        with pytest.raises(DataError):
            Index.open(Path(text))
        with pytest.raises(DataError):
            check_run(recipe(data__root=text), 1)
        with pytest.raises(WeightsError):
            check_run(recipe(stages__embedding__init=text), 1)
        with pytest.raises(RecipeError):
            load_recipe(text)
        with pytest.raises((RecipeError, DataError)):
            prepare_scoring(Path(text), None)
        with pytest.raises(DataError):
            prepare_scoring(whole, text)
    assert not list(tmp_path.iterdir())
