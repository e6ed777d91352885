"""The records of ``metrics.jsonl``, by stage."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embae.datasets.files.plain import open_plain

_MOST = 200_000_000  # bytes of metrics.jsonl that are read: 600,000 lines
_LINE = 100_000

PAIRS = {"precision": "precision", "recall": "recall", "cross_precision": "precision, two cameras",
         "cross_recall": "recall, two cameras"}
"""Metrics of a clustering, recorded if labels are known → name in the report."""
Records = dict[str, dict[str, list[dict[str, Any]]]]
"""Stage → kind → records in order."""


def read_records(run: Path) -> Records:
    """The records of a run; lines that are not records are left out."""
    records: Records = defaultdict(lambda: defaultdict(list))
    try:
        with open_plain(run / "metrics.jsonl") as file:
            left = _MOST
            while left > 0 and (line := file.readline(_LINE)):
                left -= len(line)
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # half a line
                if isinstance(record, dict) and type(record.get("step")) is int:
                    records[str(record.get("stage"))][str(record.get("kind"))].append(record)
    except OSError:
        pass
    return records


def last(records: Records, stage: str, kind: str) -> dict[str, float]:
    """The numbers of a stage's last record of a kind; empty where there is none."""
    *_, newest = [{}, *records.get(stage, {}).get(kind, [])]
    return {key: float(value) for key, value in newest.items() if _is_number(value)}


def points(records: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps of records that have a number under a key, and these numbers."""
    pairs = list(_pairs(records, key))
    return [step for step, _ in pairs], [value for _, value in pairs]


def _pairs(records: Sequence[dict[str, Any]], key: str) -> Iterator[tuple[float, float]]:
    for record in records:
        value: Any = record.get(key)
        if _is_number(value) and _is_number(record["step"]):
            yield float(record["step"]), float(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # which NaN is not
