"""The curves of every stage, from ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embae.datasets.plain import open_plain
from embae.trainer.facts import Facts
from embae.trainer.report.charts import legend, line_chart
from embae.trainer.report.markup import Markup, joined, section, tag

_MOST = 200_000_000  # bytes of metrics.jsonl that are looked at: 600,000 lines
_LINE = 100_000
# Not curves of their own: the loss and its terms stand in one chart, and the rest is said in words or nowhere.
_NO_TERM = ("step", "loss", "lr", "epoch", "images_per_s", "waiting_percent", "saving_percent", "memory_gib",
            "seconds_left", "right", "d_ap", "d_an")

Records = dict[str, dict[str, list[dict[str, Any]]]]
"""Stage → kind → records in order."""


def read_records(run: Path) -> Records:
    """The records of a run; empty where there are none, without what is no record."""
    found: Records = defaultdict(lambda: defaultdict(list))
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
                    found[str(record.get("stage"))][str(record.get("kind"))].append(record)
    except OSError:
        pass
    return found


def curves(facts: Facts, records: Records) -> Markup:
    """Losses, learning rate, speed, and scores taken on the way, stage by stage."""
    parts = [_stage(name, records[name]) for name in facts.recipe.run if records.get(name, {}).get("train")]
    if not parts:
        return section("curves", "Curves", tag("p", "metrics.jsonl holds no training records yet.", class_="none"))
    return section("curves", "Curves", *parts)


def _stage(name: str, kinds: dict[str, list[dict[str, Any]]]) -> Markup:
    train = kinds["train"]
    terms = [key for key, value in train[0].items() if key not in _NO_TERM and type(value) is float]
    losses = ["loss", *(terms if len(terms) > 1 else [])]
    charts = [_chart("Loss", train, losses, log=True)]
    if len(set(_values(train, "lr")[1])) > 1:
        charts.append(_chart("Learning rate", train, ["lr"]))
    charts.append(_chart("Images per second", train, ["images_per_s"]))
    if any("d_ap" in record for record in train):
        charts.insert(1, _chart("Distance in a batch", train, ["d_ap", "d_an"], ("to the positive", "to the negative")))
    evals = [record for record in kinds.get("eval", []) if type(record.get("mAP")) is float]
    if len(evals) > 1:  # one stands in the table
        charts.insert(0, _chart(f"Scores on {evals[0].get('dataset', 'the target')}", evals, ["Rank-1", "mAP"],
                                dots=True))
    return joined([tag("h3", name), tag("div", *charts, class_="charts")])


def _chart(title: str, records: list[dict[str, Any]], keys: list[str], names: tuple[str, ...] = (), *,
           log: bool = False, dots: bool = False) -> Markup:
    series = {key: _values(records, key) for key in keys}
    shown = names or tuple(keys)
    label = f"{title} by step"
    return tag("figure", tag("figcaption", title), line_chart(series, label=label, log=log, dots=dots),
               *([legend(shown)] if len(keys) > 1 else []))


def _values(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    known = list(_known(records, key))
    return [float(step) for step, _ in known], [value for _, value in known]


def _known(records: list[dict[str, Any]], key: str) -> Iterator[tuple[int, float]]:
    for record in records:
        value = record.get(key)
        if isinstance(value, (int, float)) and abs(value) < 1e300 and abs(record["step"]) < 2**53:  # neither is NaN
            yield record["step"], float(value)
