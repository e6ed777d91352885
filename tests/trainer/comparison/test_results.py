"""Sums over seeds, gains, and what has to be said of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from subprocess import run

import pytest
from helpers.invented_results import comparison, family, result

from embae.trainer.comparison.results import MeanSd, remarks, summarise, to_json


def about(mean: float, sd: float | None) -> MeanSd:
    return MeanSd(pytest.approx(mean), sd if sd is None else pytest.approx(sd))  # type: ignore[arg-type]


def test_rows_are_means_over_seeds_in_order_of_appearance() -> None:
    rows = summarise(family())
    assert [row.name for row in rows] == ["Baseline", "EmbAE-fix", "EmbAE-cam", "BN per camera"]
    baseline, fix, cam, control = rows
    assert baseline.scores["Rank-1"] == about(0.41, 0.01)
    assert baseline.seeds == (0, 1, 2) and baseline.interval is None
    assert (cam.seconds, cam.adaptation, cam.images) == (101, 11, 1000)
    assert [row.trained for row in rows] == [True, True, True, False]
    assert [row.start for row in rows] == [None, "Baseline", "Baseline", "Baseline"]
    assert fix.recipes == ("embae-fix",) and control.recipes == ("bn-camera",)
    assert not {"queries", "unmatched", "interval"} & baseline.scores.keys()


def test_gains_are_paired_by_seed() -> None:
    _, fix, cam, _ = summarise(family())
    # The baseline spreads by 0.01, the model by as much; their difference by a tenth of that.
    assert cam.scores["Rank-1"].sd == pytest.approx(0.011)
    assert cam.gains["Rank-1"] == about(0.031, 0.001)
    assert cam.gains["mAP"] == about(0.04, 0)
    assert fix.gains["mAP"] == about(0, 0.01)
    assert summarise(family())[0].gains == {}


def test_gains_are_of_seeds_that_both_have() -> None:
    results = [one for one in family() if not (one.row == "Baseline" and one.seed == 2)]
    cam = summarise(results)[2]
    assert cam.seeds == (0, 1, 2)
    assert cam.gains["Rank-1"] == about(0.0305, 0.001 / 2**0.5)


def test_one_seed_has_an_interval_and_no_spread() -> None:
    baseline, _, cam, _ = summarise(family([1]))
    assert baseline.scores["mAP"] == about(0.21, None)
    assert cam.gains["mAP"] == about(0.04, None)
    assert baseline.interval == {"Rank-1": pytest.approx((0.38, 0.43)), "mAP": pytest.approx((0.19, 0.22))}


def test_equal_rows_of_recipes_are_one() -> None:
    baseline = summarise(family())[0]
    assert baseline.recipes == ("embae-fix", "embae-cam", "bn-camera")
    # Also while one of the recipes is not through all seeds.
    behind = [one for one in family() if one.recipe != "embae-fix" or one.seed == 0]
    found = summarise(behind)
    assert [row.name for row in found] == ["Baseline", "EmbAE-fix", "EmbAE-cam", "BN per camera"]
    assert found[0].seeds == (0, 1, 2) and found[1].seeds == (0,)


def test_rows_of_one_name_and_other_scores_are_distinguished() -> None:
    odd = [one if one.recipe != "bn-camera" or one.row != "Baseline" else
           replace(one, scores={**one.scores, "mAP": one.scores["mAP"] + 0.1}) for one in family()]
    rows = {row.name: row for row in summarise(odd)}
    assert list(rows) == ["Baseline (embae-fix, embae-cam)", "EmbAE-fix", "EmbAE-cam", "Baseline (bn-camera)",
                          "BN per camera"]
    # Each gains over the one of its own recipe.
    assert rows["EmbAE-cam"].start == "Baseline (embae-fix, embae-cam)"
    assert rows["BN per camera"].start == "Baseline (bn-camera)"
    assert rows["BN per camera"].gains["mAP"] == about(0.03 - 0.1, 0)
    assert rows["Baseline (bn-camera)"].row == "Baseline"


def test_one_seed_that_differs_tells_rows_apart() -> None:
    results = [result("a", "Baseline", 0, 0.4, 0.2), result("a", "Baseline", 1, 0.4, 0.2),
               result("b", "Baseline", 0, 0.4, 0.2), result("b", "Baseline", 1, 0.4, 0.2000001)]
    assert [row.name for row in summarise(results)] == ["Baseline (a)", "Baseline (b)"]
    assert len(summarise([results[0], results[3]])) == 2  # and without a common seed nothing says that they are one


def test_a_start_in_another_recipe() -> None:
    baseline, model = result("a", "Baseline", 0, 0.4, 0.2), result("b", "Model", 0, 0.5, 0.3, "Baseline")
    assert summarise([baseline, model])[1].gains["mAP"] == about(0.1, None)
    unclear = summarise([baseline, result("c", "Baseline", 0, 0.45, 0.2), model])[2]
    assert unclear.gains == {} and unclear.start == "Baseline"
    assert summarise([model])[0].gains == {}


def test_two_results_of_one_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="embae-fix: two results of 'Baseline' for seed 0"):
        summarise([*family(), family()[0]])


def test_probes() -> None:
    baseline, _, cam, _ = summarise(family())
    assert baseline.probes is None
    assert cam.probes == {"camera from z": about(0.6, 0.1), "chance of camera": about(0.25, 0), "moved": about(0.3, 0)}
    # Those of a shared row are kept whichever recipe took them.
    taken = [replace(one, probes={"moved": 0.0}) if one.recipe == "embae-cam" else one for one in family()]
    assert summarise(taken)[0].probes == {"moved": MeanSd(0, 0)}


def test_remarks() -> None:
    assert remarks(summarise(family())) == [
        "BN per camera, which trains nothing, does at least as well (mAP 0.240) as EmbAE-fix (0.210).",
        "EmbAE-fix gains nothing over Baseline beyond the spread of seeds: mAP +0.000 ± 0.010.",
    ]
    single = remarks(summarise(family([0])))
    assert single[1:] == [
        "EmbAE-fix gains nothing over Baseline: mAP -0.010.",
        "Gains of one seed have no spread: other seeds may not show them.",
    ]
    assert remarks(summarise([one for one in family() if one.row in ("Baseline", "EmbAE-cam")])) == []
    assert remarks([]) == []


def test_an_equal_control_is_remarked() -> None:
    equal = [replace(one, scores={**one.scores, "mAP": 0.24 + 0.01 * one.seed}) if not one.trained else one
             for one in family()]
    said = remarks(summarise(equal))[0]
    assert said.startswith("BN per camera, which trains nothing, does at least as well (mAP 0.250) as ")
    assert "EmbAE-cam (0.250)" in said


def test_what_starts_from_an_adapted_model_is_no_control() -> None:
    results = [one for one in family() if one.recipe == "embae-cam"]
    results += [result("embae-cam", "BN after", seed, 0.9, 0.9, "EmbAE-cam", trained=False) for seed in range(3)]
    assert remarks(summarise(results)) == []
    # A row that names itself ends no loop either.
    assert remarks(summarise([result("a", "Odd", 0, 0.4, 0.2, "Odd", trained=False)])) == []


def test_the_json_has_every_result_and_no_nan() -> None:
    whole = comparison()
    tree = json.loads(json.dumps(to_json(whole), allow_nan=False))
    assert [(one["recipe"], one["row"], one["seed"]) for one in tree["results"]] == [
        (one.recipe, one.row, one.seed) for one in whole.results]
    assert [one["scores"] for one in tree["results"]] == [json.loads(json.dumps(one.scores)) for one in whole.results]


def test_the_json_keys_stay() -> None:
    tree = json.loads(json.dumps(to_json(comparison())))
    assert list(tree) == ["dataset", "sources", "tta", "results", "rerank", "expand", "rows", "remarks"]
    assert list(tree["results"][0]) == [
        *("recipe", "row", "seed", "start", "trained"), *("scores", "seconds", "adaptation", "images", "probes")]
    assert list(tree["rows"][0]) == [
        *("name", "row", "recipes", "start", "trained", "seeds", "scores", "gains", "interval"),
        *("seconds", "adaptation", "images", "probes")]
    assert tree["rows"][0]["scores"]["mAP"] == {"mean": pytest.approx(0.21), "sd": pytest.approx(0.01)}
    assert tree["rows"][0]["interval"] is None and tree["rows"][2]["probes"]["moved"]["mean"] == pytest.approx(0.3)
    single = to_json(comparison([0]))["rows"][0]
    assert single["scores"]["mAP"]["sd"] is None and list(single["interval"]) == ["Rank-1", "mAP"]


def test_nothing_heavy_is_imported() -> None:
    check = ("import sys, embae.trainer.comparison.table; "
             "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'matplotlib')))")
    assert run([sys.executable, "-c", check]).returncode == 0
