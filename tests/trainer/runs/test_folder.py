"""Whose run a folder holds, who works in it, and what is finished there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_run

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import check_recipe, load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.folder import write_recipe
from embae.trainer.runs.folder_lock import lock_folder
from embae.trainer.runs.same_recipe import check_same_recipe


def recipe(**changes: Any) -> Recipe:
    return check_recipe(tiny_run.tree(**changes), "tiny")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first stage is done."""
    write_recipe(tmp_path / "run", recipe(), world_size=3)
    (tmp_path / "run" / "embedding").mkdir()
    mark = {"steps": 12, "images": 144, "rank_seconds": 1.5}
    (tmp_path / "run" / "embedding" / "done").write_text(json.dumps(mark))
    return tmp_path / "run"


def test_the_recipe_in_the_folder_loads_again_and_says_what_it_ran_with(run: Path) -> None:
    assert load_recipe(str(run / "recipe.yaml")) == recipe()
    first, second, *_ = (run / "recipe.yaml").read_text().splitlines()
    assert "torch 2." in first and "deepspeed 0." in first and "timm 1." in first
    assert "git commit" in second and "world size 3" in second
    assert [path.name for path in sorted(run.iterdir())] == ["embedding", "recipe.yaml"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluate": {}},
        {"evaluate": {"Only": "autoencoder"}},
        {"scoring": {"tta": "none", "batch": 2}},
        {"checkpoints": {"every": 7, "keep": 3}, "timeout": 30},
        {"stages__autoencoder__epochs": 9},
        {"stages__autoencoder__epochs": None, "stages__autoencoder__schedule": {"constant": 2}},
        {"stages__embedding__evaluate_every": 5},
        {"stages__autoencoder__evaluate_every": 5},
    ],
)
def test_evaluation_and_the_length_of_unfinished_stages_may_change(run: Path, changes: dict[str, Any]) -> None:
    check_same_recipe(run, recipe(**changes))


MARKS = ["", "12 steps", "[]", '{"steps": 12}', '{"steps": -1, "images": 1, "rank_seconds": 0}']


@pytest.mark.parametrize("mark", MARKS)
def test_a_damaged_mark_of_a_stage_is_reported(run: Path, mark: str) -> None:
    (run / "embedding" / "done").write_text(mark)
    with pytest.raises(RecipeError, match="embedding/done: does not say what the stage took"):
        check_same_recipe(run, recipe())


@pytest.mark.parametrize(
    "changes, keys",
    [
        ({"seed": 4}, ["seed: 0 in the folder, 4 now"]),
        ({"stages__embedding__epochs": 2}, ["stages.embedding.epochs: 1.0 in the folder, 2.0 now"]),
        (
            {"stages__embedding__epochs": None, "stages__embedding__schedule": {"constant": 1}},
            ["stages.embedding.epochs", "stages.embedding.schedule"],
        ),
        (
            {"stages__autoencoder__optimizer": {"lr": 0.5}, "data__sources": ["square"]},
            [
                "data.sources: ['square', 'tower'] in the folder, ['square'] now",
                "stages.autoencoder.optimizer.lr: 0.001 in the folder, 0.5 now",
            ],
        ),
        ({"data__target": "lake"}, ["data.target: park in the folder, lake now"]),
        (
            {"stages__embedding__deepspeed": {"wall_clock_breakdown": True}},
            ["stages.embedding.deepspeed.wall_clock_breakdown: not set in the folder, True now"],
        ),
    ],
)
def test_other_changes_are_refused_by_name(run: Path, changes: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_same_recipe(run, recipe(**changes))
    lines = str(caught.value).splitlines()
    assert str(run) in lines[0] and "another recipe" in lines[0]
    assert all(any(line.startswith(f"  {key}") for line in lines) for key in keys), lines
    assert "--out" in lines[-1]


def test_a_new_folder_takes_any_recipe(tmp_path: Path) -> None:
    check_same_recipe(tmp_path / "nothing", recipe())
    assert not (tmp_path / "nothing").exists()


HOLD = (
    "import sys, pathlib, time; from embae.trainer.runs.folder_lock import lock_folder; "
    "held = lock_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.mark.ranks
def test_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path: Path, capsys: Any) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        start = time.monotonic()
        with pytest.raises(RecipeError, match=f"process {holder.pid} on .* is running in this folder.*--out"):
            lock_folder(tmp_path, wait_s=0.5)
        assert 0.5 <= time.monotonic() - start < 5
        assert f"waiting for process {holder.pid}" in capsys.readouterr().err
        holder.kill()  # as the kernel ends the workers of a killed launcher
        lock_folder(tmp_path, wait_s=10).close()
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.ranks
def test_a_start_waits_for_the_last_one_to_end(tmp_path: Path) -> None:
    command = HOLD.replace("time.sleep(60)", "time.sleep(1)")
    with subprocess.Popen([sys.executable, "-c", command, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        lock_folder(tmp_path, wait_s=30).close()
    held = lock_folder(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith("process ")
    held.close()
