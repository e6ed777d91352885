"""The stages of a run: one row for each stage, and one for all rounds of a repeated stage."""

from __future__ import annotations

from collections.abc import Sequence

from embae.trainer.losses.parts import PARTS
from embae.trainer.recipe.stage import Stage
from embae.trainer.report.loops import Loop, fold, unnumbered
from embae.trainer.report.markup import Markup, joined, section, table, tag
from embae.trainer.report.records import PAIRS, Records, last
from embae.trainer.runs.summary import RunSummary


def stages(facts: RunSummary, records: Records) -> Markup:
    """Stages in order: trained and frozen parts, data, duration."""
    rows, opened = [], []
    for entry in fold(facts.recipe):
        if isinstance(entry, Loop):
            rows += [_row(facts, f"{name} × {entry.rounds}", entry.stages(name)) for name in entry.names]
            opened.append(_rounds(facts, entry, records))
        else:
            rows.append(_row(facts, entry, [entry]))
    head = ["stage", "parts", "images", "what it minimises", "starts from", "steps", "images seen", "time × ranks"]
    key = tag("p", tag("span", "trained", class_="chip train"), tag("span", "frozen", class_="chip frozen"),
              " × n: in each of n rounds" if opened else "")
    return section("stages", "Stages", key, table(head, rows, sortable=False, numbers=5, cards=True), *opened)


def _row(facts: RunSummary, name: str, rounds: Sequence[str]) -> list[object]:
    stage = facts.recipe.stages[rounds[0]]
    chips = [tag("span", part, class_=f"chip {stage.use(part)}") for part in PARTS if stage.use(part) != "absent"]
    took = [one for one in map(facts.costs.__getitem__, rounds) if one]
    begins: object = stage.init if len(rounds) == 1 else _begins(stage.init, facts.recipe.stages[rounds[1]].init)
    if "/" in stage.init:  # a file or another run: its last names say enough, and the path may be long
        begins = tag("span", "/".join(stage.init.rsplit("/", 3)[-3:]), title=stage.init)
    length = [f"{sum(one.steps for one in took):,}", f"{sum(one.images for one in took):,}",
              duration(sum(one.rank_seconds for one in took))]
    if len(took) < len(rounds):
        length[0] = f"{len(took)} of {len(rounds)} done" if len(rounds) > 1 else "not done"
        length[1:] = length[1:] if took else ["", ""]
    return [name, joined(chips), _data_of(stage, len(rounds) > 1), _task(stage), begins, *length]


def _begins(first: str, second: str) -> str:
    """The origin of a repeated stage's model, from its origins in the first and second round."""
    if first == second:
        return first
    one, other = unnumbered(first), unnumbered(second)
    return one if one == other else f"{one}, then {other} of the round before"


def _rounds(facts: RunSummary, loop: Loop, records: Records) -> Markup:
    """A table with a row for each round, folded until the reader opens it."""
    every = [last(records, stage, "cluster") for name in loop.names for stage in loop.stages(name)]
    shares = [name for name in PAIRS if any(name in values for values in every)]
    clustered = any("clusters" in values for values in every)
    head = ["round", *(["clusters", "images left out"] if clustered else []), *map(PAIRS.__getitem__, shares),
            "steps", "last loss", "time × ranks"]
    rows = []
    for number in range(1, loop.rounds + 1):
        names = [f"{name}-{number}" for name in loop.names]
        values: dict[str, float] = {}
        loss: list[float] = []
        for name in names:
            values |= last(records, name, "cluster")
            loss += [value for key, value in last(records, name, "train").items() if key == "loss"]
        took = [one for one in map(facts.costs.__getitem__, names) if one]
        groups = [_count(values, "clusters"), _count(values, "images", "kept")] if clustered else []
        rows.append([number, *groups, *(f"{values[name]:.3f}" if name in values else "–" for name in shares),
                     f"{sum(one.steps for one in took):,}" if took else "not done",
                     f"{loss[-1]:.3f}" if loss else "–",
                     duration(sum(one.rank_seconds for one in took)) if took else "–"])
    caption = (
        "Precision: the share of pairs of images in one cluster that show one person; recall: the share of pairs "
        "of one person that are in one cluster. Labels are used for this table alone."
    )
    return tag("details", tag("summary", f"{loop.rounds} rounds of {', '.join(loop.names)}, one by one"),
               *([tag("p", caption)] if shares else []), table(head, rows))


def _count(values: dict[str, float], name: str, less: str = "") -> str:
    return f"{values[name] - values.get(less, 0):,.0f}" if name in values else "–"


def _data_of(stage: Stage, repeated: bool) -> str:
    data = stage.data
    images = {"sources": "sources", "target": "target", "all": "sources and target"}[data.from_]
    if data.labels:
        return f"{images}, pseudo-labels of {unnumbered(data.labels) if repeated else data.labels}"
    return f"{images}, P = {data.P}, K = {data.K}" if data.labelled else f"{images}, no labels, batch {data.batch}"


def _task(stage: Stage) -> str:
    if stage.loss:
        return " + ".join(stage.loss.terms())
    return f"nothing: {stage.kind}" + (f" {stage.calibrate.what} per {stage.calibrate.per}" if stage.calibrate else "")


def duration(seconds: float) -> str:
    """A duration as people write it."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min" if minutes >= 1.5 else f"{seconds:.0f} s"
