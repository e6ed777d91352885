"""Stages that a run repeats: one row each, and all their rounds below it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.report.curves import curves
from embae.trainer.report.loops import Loop, fold
from embae.trainer.report.records import read_records
from embae.trainer.report.stages import stages
from embae.trainer.runs.stage_folder import StageCost
from embae.trainer.runs.summary import RunSummary

THREE = ("group", "adapt", "recalibrate")


def adapting(*overrides: str) -> Recipe:
    return load_recipe("adapt-best", list(overrides), ["quick"])


def test_rounds_of_a_recipe_are_one_loop() -> None:
    assert fold(adapting("rounds=25")) == ["embedding", "calibrate", Loop(THREE, 25)]
    assert fold(load_recipe("pul", ["rounds=4"], ["quick"]))[-1] == Loop(("cluster", "retrain"), 4)
    stages = ["embedding", "autoencoder", "target-nuisance", "target-embedding"]
    assert fold(load_recipe("embae-cam", [], ["quick"])) == stages


def test_a_single_round_is_no_loop() -> None:
    found = adapting("rounds=1")
    assert fold(found) == found.run


def test_what_differs_is_no_round() -> None:
    recipe = adapting("rounds=3")
    other = recipe.stages["adapt-3"].model_copy(update={"clip": 1.0})
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, "adapt-3": other}})
    assert fold(recipe) == ["embedding", "calibrate", Loop(THREE, 2), "group-3", "adapt-3", "recalibrate-3"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A run of five rounds, of which four are done and written down: n of them has 100 + n clusters, and so on."""
    run, recipe = tmp_path_factory.mktemp("run"), adapting("rounds=5")
    took = {name: None if name.endswith("-5") else StageCost(10 * name.startswith(("adapt", "embedding")), 640, 30.0)
            for name in recipe.run}
    lines = []
    for number in range(1, 5):
        lines.append({"kind": "cluster", "stage": f"group-{number}", "step": 0, "clusters": 100 + number, "kept": 590,
                      "images": 600, "precision": 0.5 + number / 10, "recall": 0.4 + number / 10})
        lines += [{"kind": "train", "stage": f"adapt-{number}", "step": step, "loss": 9.0 / number, "right": 0.5,
                   "near_memory": 0.75, "lr": 1e-4 * step, "images_per_s": 50.0} for step in (5, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunSummary(run, recipe, [], took, [], [], [])


def test_a_stage_has_one_row_with_all_of_its_rounds(facts: RunSummary) -> None:
    html = stages(facts, read_records(facts.run))
    table, opened = html.split("<details>")
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert [" ".join(row[:3]) for row in rows][2:] == ["group × 5", "adapt × 5", "recalibrate × 5"]
    assert len(rows) == 5 and " ".join(rows[3][-7:]) == "4 of 5 done 2,560 2.0 min"
    assert "calibrate, then recalibrate of the round before" in table and "pseudo-labels of group<" in table
    assert ">adapt<" in table and "adapt-1" not in html
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", opened)[1:]]
    assert rows[2] == ["3", "103", "10", "0.800", "0.700", "10", "3.000", "1.5 min"]
    assert len(rows) == 5 and rows[4] == ["5", *["–"] * 4, "not done", "–", "–"]


def test_curves_go_over_the_rounds(facts: RunSummary) -> None:
    html = curves(facts, read_records(facts.run))
    charts = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", html))
    assert list(charts) == ["Clusters, by round", "Pairs of pseudo-labels, by round", "Loss, by step",
                            "Right in the batch, by step", "Learning rate, by step",
                            "Images per second, by step"]
    dots = [tuple(map(float, dot)) for dot in
            re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', charts["Clusters, by round"])]
    assert len(dots) == 4 and dots == sorted(dots, key=lambda dot: (dot[0], -dot[1]))  # to the right, and up
    assert len(set(dots)) == 4 and re.findall(r">(\d)<", charts["Clusters, by round"]) == ["1", "2", "3", "4"]
    assert charts["Pairs of pseudo-labels, by round"].count("<circle") == 8
    assert charts["Right in the batch, by step"].count("<polyline") == 2
    loss = charts["Loss, by step"]
    assert loss.count('class="mark"') == 3 and ">40<" in loss  # four rounds of ten steps in a row
    assert len(re.findall(r"[\d.]+,[\d.]+", loss)) == 8


def test_a_run_without_records_says_so(facts: RunSummary, tmp_path: Path) -> None:
    nothing = replace(facts, run=tmp_path)
    assert "holds no training records yet" in curves(nothing, read_records(tmp_path))
    assert stages(nothing, read_records(tmp_path)).count("<tr>") == 1 + 5 + 1 + 5
