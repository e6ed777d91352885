"""The curves of every stage, from ``metrics.jsonl``; those of stages that a run repeats, over all rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embae.trainer.report.charts import PLAIN, LineStyle, legend, line_chart
from embae.trainer.report.loops import Loop, fold
from embae.trainer.report.markup import Markup, joined, section, tag
from embae.trainer.report.records import PAIRS, Records, last, points
from embae.trainer.runs.summary import RunSummary

# No separate curves: the loss and its terms share one chart; the others are in the text, or not in the report.
_NO_TERM = ("step", "loss", "lr", "epoch", "images_per_s", "waiting_percent", "saving_percent", "memory_gib",
            "seconds_left", "d_ap", "d_an")


def curves(facts: RunSummary, records: Records) -> Markup:
    """Losses, learning rate, speed, and scores during training, stage by stage."""
    parts: list[Markup] = []
    for entry in fold(facts.recipe):
        if isinstance(entry, Loop):
            parts += _loop(entry, records)
        elif records.get(entry, {}).get("train"):
            parts.append(_stage(entry, records[entry]))
    if not parts:
        return section("curves", "Curves", tag("p", "metrics.jsonl holds no training records yet.", class_="none"))
    return section("curves", "Curves", *parts)


def _loop(loop: Loop, records: Records) -> Iterator[Markup]:
    """Charts of clusters and scores by round, then of each stage that trains, its rounds one after the other."""
    charts, by_round = [], LineStyle(by="round", dots=True)
    for name in loop.names:
        numbered = [(number, stage) for number, stage in enumerate(loop.stages(name), 1)]
        clusters = [{**last(records, stage, "cluster"), "step": number} for number, stage in numbered]
        if any("clusters" in record for record in clusters):
            charts.append(_chart("Clusters", clusters, ["clusters"], style=by_round))
        if any("precision" in record for record in clusters):
            charts.append(
                _chart("Pairs of pseudo-labels", clusters, list(PAIRS), tuple(PAIRS.values()), style=by_round)
            )
        evals = [{**last(records, stage, "eval"), "step": number} for number, stage in numbered]
        if sum("mAP" in record for record in evals) > 1:
            charts.append(_chart(f"Scores after {name}", evals, ["Rank-1", "mAP"], style=by_round))
    if charts:
        names = f"{', '.join(loop.names)}: {loop.rounds} rounds"
        yield joined([tag("h3", names), tag("div", *charts, class_="charts")])
    for name in loop.names:
        train: list[dict[str, Any]] = []
        ends: list[float] = []
        for stage in loop.stages(name):
            some = records.get(stage, {}).get("train", [])
            train += [{**record, "step": record["step"] + (ends[-1] if ends else 0)} for record in some]
            ends += [train[-1]["step"]] if some else []
        if train:
            yield _stage(f"{name}, {len(ends)} rounds one after the other", {"train": train}, marks=ends[:-1])


def _stage(name: str, kinds: Mapping[str, list[dict[str, Any]]], marks: Sequence[float] = ()) -> Markup:
    train = kinds["train"]
    series = [key for key, value in train[0].items() if type(value) is float]
    right = [key for key in series if key == "right" or key.startswith("near_")]
    terms = [key for key in series if key not in _NO_TERM and key not in right]
    losses = ["loss", *(terms if len(terms) > 1 else [])]
    style = LineStyle(marks=marks)
    charts = [_chart("Loss", train, losses, style=replace(style, log=True))]
    if len(set(points(train, "lr")[1])) > 1:
        charts.append(_chart("Learning rate", train, ["lr"], style=style))
    charts.append(_chart("Images per second", train, ["images_per_s"], style=style))
    if any("d_ap" in record for record in train):
        charts.insert(1, _chart("Distance in a batch", train, ["d_ap", "d_an"], ("to the positive", "to the negative"),
                                style=style))
    if right:
        names = tuple({"right": "triplets"}.get(key, key.removeprefix("near_")) for key in right)
        charts.insert(1, _chart("Right in the batch", train, right, names, style=style))
    evals = [record for record in kinds.get("eval", []) if type(record.get("mAP")) is float]
    if len(evals) > 1:  # one stands in the table
        charts.insert(0, _chart(f"Scores on {evals[0].get('dataset', 'the target')}", evals, ["Rank-1", "mAP"],
                                style=LineStyle(dots=True)))
    return joined([tag("h3", name), tag("div", *charts, class_="charts")])


def _chart(title: str, records: Sequence[dict[str, Any]], keys: list[str], names: tuple[str, ...] = (), *,
           style: LineStyle = PLAIN) -> Markup:
    series = {key: points(records, key) for key in keys}
    shown = names or tuple(keys)
    chart = line_chart(series, label=f"{title} by {style.by}", style=style)
    return tag("figure", tag("figcaption", f"{title}, by {style.by}"), chart,
               *([legend(shown)] if len(keys) > 1 else []))
