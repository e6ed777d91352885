"""The table that a run ends with, and its JSON."""

from __future__ import annotations

import json
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
    rows = {"Baseline": scores(0.3), "a longer name than model": scores(0.5)}
    first, head, rule, *body = score_table("park", "flip", rows).splitlines()
    assert "park" in first and "7 queries" in first and "flip" in first
    assert rule == "─" * len(head)
    for line, (row, values) in zip(body, rows.items(), strict=True):
        assert line.startswith(row)
        for name in SHOWN:
            end = head.index(f" {name} ") + 1 + len(name)
            assert line[:end].endswith(f"  {values[name]:.3f}"), (name, line)
        low, high = values["interval"]["Rank-1"]
        assert line.endswith(f"{low:.3f} … {high:.3f}")
    assert head.endswith("Rank-1, 95 % interval")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "park.json"
    write_scores(path, "park", "none", {"Baseline": scores(0.3)})
    write_scores(path, "park", "flip", {"Baseline": scores(0.4)})  # a second time, over the first
    found = json.loads(path.read_text())
    assert found == {"dataset": "park", "tta": "flip", "rerank": False, "expand": 0, "rows": {"Baseline": scores(0.4)}}
    assert [entry.name for entry in path.parent.iterdir()] == ["park.json"]
