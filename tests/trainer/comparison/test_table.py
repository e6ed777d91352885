"""The tables of a comparison, in both forms."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from helpers.invented_results import comparison, family

from embae.trainer.comparison.results import Comparison
from embae.trainer.comparison.table import comparison_table

NAMES = ["model", "Rank-1", "Rank-1-nd", "mAP", "mAP-nd", "gain Rank-1", "gain mAP", "gain over",
         "rank-seconds", "of adaptation", "images seen"]


def markdown_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_value_stands_in_its_column() -> None:
    head, rule, *body = markdown_rows(comparison_table(comparison(), markdown=True))
    assert head == NAMES
    assert [cell == "---" for cell in rule] == [name in ("model", "gain over") for name in NAMES]
    rows = {row[0]: dict(zip(NAMES, row, strict=True)) for row in body if row[0]}
    assert list(rows) == ["Baseline", "EmbAE-fix", "EmbAE-cam", "BN per camera †"]
    assert rows["EmbAE-cam"] == {
        "model": "EmbAE-cam", "Rank-1": "0.441 ± 0.011", "Rank-1-nd": "0.491 ± 0.011", "mAP": "0.250 ± 0.010",
        "mAP-nd": "0.290 ± 0.010", "gain Rank-1": "+0.031 ± 0.001", "gain mAP": "+0.040 ± 0.000",
        "gain over": "Baseline", "rank-seconds": "101", "of adaptation": "11", "images seen": "1,000",
    }
    assert [rows["Baseline"][name] for name in ("gain Rank-1", "gain mAP", "gain over")] == ["–"] * 3


def test_published_figures_stand_below_their_row() -> None:
    body = markdown_rows(comparison_table(comparison(), markdown=True))[2:]
    below = {row[0]: dict(zip(NAMES, after, strict=True)) for row, after in pairwise(body)
             if not after[0]}
    assert list(below) == ["Baseline", "EmbAE-fix", "EmbAE-cam"]  # nothing was published of the control
    assert below["EmbAE-cam"]["Rank-1"] == "paper: 0.585"
    assert below["EmbAE-cam"]["mAP-nd"] == "paper: 0.345"
    assert below["EmbAE-cam"]["gain Rank-1"] == "paper: +0.164"
    assert below["Baseline"]["gain Rank-1"] == below["EmbAE-cam"]["rank-seconds"] == ""
    assert "paper" not in comparison_table(comparison(dataset="campus"), markdown=True)


def test_published_figures_of_rows_distinguished() -> None:
    whole = comparison()
    odd = tuple(replace(one, scores={**one.scores, "mAP": 0.5}) if one.recipe == "bn-camera" else one
                for one in whole.results)
    text = comparison_table(replace(whole, results=odd))
    assert "Baseline (embae-fix, embae-cam)" in text and "Baseline (bn-camera)" in text
    assert text.count("paper: 0.421") == 2 and "paper: +0.164" in text


def test_text_has_the_same_cells_in_columns() -> None:
    text = comparison_table(comparison())
    assert max(map(len, text.splitlines())) <= 80
    first, second, rest = text.split("\n", 2)
    assert f"{first} {second}" == ("market1501, from dukemtmc, seeds 0, 1, 2, test-time augmentation: ten-crop, mAP "
                                   "by trapezoid")
    scores, gains, costs = rest.split("\n\n")
    costs, note = costs.split("\n±")
    assert f"±{note}".replace("\n", " ") == (
        "± is the standard deviation over seeds; gains are paired by seed. † trains nothing on the target.")
    cells = markdown_rows(comparison_table(comparison(), markdown=True))[2:]
    for table, names in ((scores, NAMES[1:5]), (gains, NAMES[5:8]), (costs, NAMES[8:])):
        head, rule, *lines = table.splitlines()
        assert rule == "─" * len(rule) and len(rule) >= len(head)
        columns = [NAMES.index(name) for name in names]
        rows = [[row[0], *(row[column] for column in columns)] for row in cells]
        rows = [row for row in rows if any(row)]
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            assert [cell for cell in row if cell] == [part.strip() for part in line.split("  ") if part.strip()]
            for name, cell in zip(names, row[1:], strict=True):
                if cell and name != "gain over":
                    end = head.index(f"  {name}") + 2 + len(name)
                    assert line[:end].endswith(cell), (name, line)


def test_one_seed_shows_intervals() -> None:
    text = comparison_table(comparison([0]), markdown=True)
    baseline = dict(zip(NAMES, markdown_rows(text)[2], strict=True))
    assert baseline["Rank-1"] == "0.400 [0.370, 0.420]" and baseline["mAP"] == "0.200 [0.180, 0.210]"
    assert baseline["mAP-nd"] == "0.240"
    assert "seed 0," in text and "95 % interval" in text and "±" not in text


def test_a_row_that_lacks_seeds_says_so() -> None:
    results = tuple(one for one in family() if one.row != "EmbAE-fix" or one.seed < 2)
    text = comparison_table(Comparison("park", ("plaza", "station"), "flip", results), markdown=True)
    assert "EmbAE-fix (2 of 3 seeds)" in text and text.count("of 3 seeds") == 1
    assert text.startswith("park, from plaza, station, seeds 0, 1, 2, ")


def test_another_augmentation_than_the_papers_is_named() -> None:
    assert "The paper's figures are with ten-crop." in comparison_table(comparison(tta="flip"))
    again = " ".join(comparison_table(comparison(rerank=True)).split())
    assert "The paper's figures are with ten-crop, by plain distances." in again
    assert "ten-crop, k-reciprocal re-ranking, mAP" in again
    assert "The paper" not in comparison_table(comparison())
    assert "The paper" not in comparison_table(comparison(dataset="campus", tta="flip"))


@pytest.mark.parametrize("markdown", [False, True])
def test_probes_on_request(markdown: bool) -> None:
    without, text = (comparison_table(comparison(), markdown=markdown, probes=asked) for asked in (False, True))
    assert text.startswith(without) and "camera from z" not in without
    more = text[len(without):]
    assert "camera from z" in more and "reconstruction error" in more
    assert "EmbAE-cam" in more and "Baseline" not in more  # only who has any
    assert "0.600 ± 0.100" in more and "(chance 0.250)" in more and "0.300 ± 0.000" in more
    if markdown:
        row = markdown_rows(more)[2]
        assert row[2:5] == ["–"] * 3  # of v nothing is known, nor is the error
    bare = replace(comparison(), results=tuple(replace(one, probes=None) for one in family()))
    assert comparison_table(bare, markdown=markdown, probes=True) == without


def test_names_break_no_table() -> None:
    named = replace(comparison([0]), results=(replace(family([0])[0], row="a | b", start=None),))
    assert "| a \\| b |" in comparison_table(named, markdown=True)
    wide = replace(comparison(), results=(*family(), replace(family([0])[0], recipe="x", row="基线")))
    _, _, head, _, *body = comparison_table(wide).splitlines()
    line = next(line for line in body if "基线" in line)
    assert len(line) == len(head.rstrip()) - 2  # two letters that are two columns wide


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no results"):
        comparison_table(replace(comparison(), results=()))
