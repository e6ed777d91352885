"""The table that a run ends with, and its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from embae.trainer.runs.score_table import SHOWN, score_table, write_scores


def scores(first: float) -> dict[str, Any]:
    return {
        **{name: first + number / 100 for number, name in enumerate(SHOWN)},
        "queries": 7,
        "unmatched": 1,
        "interval": {"Rank-1": [first - 0.1, first + 0.1]},
    }


def test_every_score_stands_below_its_name() -> None:
    rows = {"Baseline": scores(0.3), "a name of words that is longer than its column": scores(0.5)}
    first, head, rule, *body = score_table("park", "flip", rows).splitlines()
    assert "park" in first and "7 queries" in first and "flip" in first
    assert rule == "─" * len(rule) and max(map(len, [first, head, rule, *body])) <= 80
    assert " ".join(line[:head.index("Rank-1")].strip() for line in body) == " ".join(rows)
    lines = [line for line in body if "…" in line]
    for line, values in zip(lines, rows.values(), strict=True):
        for name in SHOWN:
            end = re.search(rf" {name}(?![-,])", head).end()  # type: ignore[union-attr]
            assert line[:end].endswith(f"  {values[name]:.3f}"), (name, line)
        low, high = values["interval"]["Rank-1"]
        assert line.endswith(f"{low:.3f} … {high:.3f}")
    assert head.endswith("Rank-1, 95 %")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "park.json"
    write_scores(path, "park", "none", {"Baseline": scores(0.3)})
    write_scores(path, "park", "flip", {"Baseline": scores(0.4)})  # a second time, over the first
    found = json.loads(path.read_text())
    assert found == {"dataset": "park", "tta": "flip", "rerank": False, "expand": 0, "rows": {"Baseline": scores(0.4)}}
    assert [entry.name for entry in path.parent.iterdir()] == ["park.json"]
