"""Charts show what they are given, whatever that is."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from embae.trainer.report.charts import MOST, LineStyle, histogram, legend, line_chart, scatter
from embae.trainer.report.records import read_records


def points(svg: str) -> np.ndarray:
    found = re.search(r'points="([^"]*)"', svg)
    assert found
    return np.array([pair.split(",") for pair in found[1].split()], float)


def test_a_line_rises_and_falls_as_its_values_do() -> None:
    drawn = points(line_chart({"a": ([0, 10, 20, 40], [1, 3, 2, 2])}, label="a"))
    assert np.diff(drawn[:, 0])[2] == pytest.approx(2 * np.diff(drawn[:, 0])[0], abs=0.3)
    steps = np.diff(drawn[:, 1])  # pixels go down
    assert steps[0] < 0 < steps[1] and steps[2] == 0 and steps[0] == pytest.approx(-2 * steps[1], abs=0.3)


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [float("nan"), 2.0], [1e-12, 1e-11], [-1e9, 1e9], [0.0, -0.0]])
def test_odd_values_make_a_chart_all_the_same(values: list[float]) -> None:
    for log in (False, True):
        made = line_chart({"a": (list(range(len(values))), values)}, label="<a>", style=LineStyle(log=log))
        ET.fromstring(made)
        assert "nan" not in made and "inf" not in made
    assert "No values" in line_chart({"a": ([], [])}, label="a")


def test_long_lines_are_thinned() -> None:
    drawn = points(line_chart({"a": (np.arange(10_000), np.arange(10_000.0))}, label="a"))
    assert len(drawn) == MOST and (np.diff(drawn[:, 0]) > 0).all() and (np.diff(drawn[:, 1]) < 0).all()


def test_a_logarithmic_axis_has_round_ticks_where_values_are_far_apart() -> None:
    def ticks(values: list[float]) -> list[str]:
        drawn = ET.fromstring(
            line_chart({"a": (list(range(len(values))), values)}, label="a", style=LineStyle(log=True))
        )
        return [node.text or "" for node in drawn.findall("text") if node.get("class") == "end"]

    assert ticks([0.03, 0.5, 3.0]) == ["0.05", "0.1", "0.2", "0.5", "1", "2"]
    assert ticks([0.02, 300.0]) == ["0.1", "1", "10", "100"]
    assert ticks([1.0, 2.25]) == ticks([1.0, 2.25, 1.5]) and "1.5" in ticks([1.0, 2.25])  # linear
    drawn = points(line_chart({"a": ([0, 1, 2], [0.01, 0.1, 1.0])}, label="a", style=LineStyle(log=True)))
    assert np.diff(drawn[:, 1]) == pytest.approx(2 * [drawn[1, 1] - drawn[0, 1]], abs=0.3)


def test_counts_have_whole_ticks() -> None:
    drawn = ET.fromstring(line_chart({"a": ([1, 2], [41, 40])}, label="a"))
    assert [node.text for node in drawn.findall("text")] == ["40", "41", "1", "2"]


def test_histogram_and_scatter() -> None:
    made = histogram({"a": np.array([0.5, 0.5]), "b": np.array([0.0, 1.0])}, np.array([0.0, 1.0, 2.0]), label="h")
    assert len(ET.fromstring(made).findall("polygon")) == 2
    drawn = ET.fromstring(scatter(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 10, label="s"))
    groups = drawn.findall("g")
    assert len(groups) == 10 and sum(len(group) for group in groups) == 30
    assert len({group.get("style") for group in groups}) == 10
    assert all(0 <= float(dot.get(key) or -1) <= 300 for dot in drawn.iter("circle") for key in ("cx", "cy"))
    assert legend(["<a>"]).count("&lt;a&gt;") == 1


def test_records_are_read_past_what_is_none(tmp_path: Path) -> None:
    assert read_records(tmp_path) == {}
    good = {"kind": "train", "stage": "one", "step": 2, "loss": 0.5}
    lines = [json.dumps(good), "{", "[" * 5000, "[]", '{"step": "x"}', json.dumps({**good, "step": 4})[:20]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_records(tmp_path) == {"one": {"train": [good]}}
