"""Published figures against the gains that the paper prints beside them."""

from __future__ import annotations

import pytest

from embae.trainer.comparison.published import published

DUKE = ["dukemtmc"]
SEVERAL = ["dukemtmc", "cuhk03", "viper", "ward"]
NAMES = ["Rank-1", "Rank-1-nd", "mAP", "mAP-nd"]


@pytest.mark.parametrize(
    ("sources", "row", "gains"),
    [
        (DUKE, "EmbAE-fix", [0.132, 0.176, 0.098, 0.128]),
        (DUKE, "EmbAE-new", [0.135, 0.165, 0.103, 0.126]),
        (DUKE, "EmbAE-cam", [0.164, 0.184, 0.117, 0.134]),
        (SEVERAL, "EmbAE-fix", [0.068, 0.105, 0.056, 0.077]),
        (SEVERAL, "EmbAE-new", [0.078, 0.100, 0.069, 0.082]),
        (SEVERAL, "EmbAE-cam", [0.115, 0.122, 0.084, 0.092]),
    ],
)
def test_figures_give_the_gains_that_are_printed(sources: list[str], row: str, gains: list[float]) -> None:
    before, after = published(sources, "market1501", "Baseline"), published(sources, "market1501", row)
    assert before and after and list(before) == list(after) == NAMES
    assert [round(after[name] - before[name], 3) for name in NAMES] == gains


@pytest.mark.parametrize(("sources", "gains"), [(DUKE, (0.086, 0.059)), (SEVERAL, (0.055, 0.035))])
def test_pul(sources: list[str], gains: tuple[float, float]) -> None:
    before, after = published(sources, "market1501", "PUL start"), published(sources, "market1501", "PUL")
    assert before and after and set(before) == set(after) == {"Rank-1", "mAP"}
    assert (round(after["Rank-1"] - before["Rank-1"], 3), round(after["mAP"] - before["mAP"], 3)) == gains


def test_the_misprint_is_not_taken_over() -> None:
    assert (published(DUKE, "market1501", "Baseline") or {})["mAP"] == 0.177


def test_order_of_sources_plays_no_part_and_nothing_else_is_published() -> None:
    best = published(SEVERAL, "market1501", "EmbAE-cam")
    assert best == published(sorted(SEVERAL, reverse=True), "market1501", "EmbAE-cam") == published(
        tuple(SEVERAL), "market1501", "EmbAE-cam")
    assert best == {"Rank-1": 0.643, "Rank-1-nd": 0.729, "mAP": 0.357, "mAP-nd": 0.414}
    assert published(DUKE, "campus", "EmbAE-cam") is None
    assert published(["plaza"], "market1501", "EmbAE-cam") is None
    assert published([*DUKE, "viper"], "market1501", "EmbAE-cam") is None
    assert published(DUKE, "market1501", "BN per camera") is None


def test_the_figures_cannot_be_changed_by_who_asks() -> None:
    (published(DUKE, "market1501", "Baseline") or {})["mAP"] = 1.0
    assert (published(DUKE, "market1501", "Baseline") or {})["mAP"] == 0.177
