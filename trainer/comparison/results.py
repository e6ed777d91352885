"""What recipes got on one target: results of single runs, their means over seeds, and remarks on them.

A gain is taken seed by seed over the row that the model started from: what both owe to the seed cancels out.
The JSON of `to_json` is stable::

    {"dataset", "sources", "tta", "rerank", "expand",
     "results": [{"recipe", "row", "seed", "start", "trained", "scores", "seconds", "adaptation", "images", "probes"}],
     "rows": [{"name", "row", "recipes", "start", "trained", "seeds", "scores": {name: {"mean", "sd"}}, "gains": …,
               "interval": {name: [low, high]} of a row of one seed, else null,
               "seconds", "adaptation", "images", "probes": {name: {"mean", "sd"}} or null}],
     "remarks": [sentence]}

``results`` are as given; ``rows`` and ``remarks`` follow from them. ``sd`` is null for one
seed. `Result` and `Row` say what the values are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embae.trainer.retrieval.ranking_options import RankingOptions

# Counts among the scores, of which means and gains say nothing.
_COUNTS = ("queries", "unmatched")


@dataclass(frozen=True)
class Result:
    """One row of one run.

    Attributes:
        recipe: Its name.
        row: The row's name in the recipe's ``evaluate``.
        seed: Of the run.
        start: The row of the model that the adaptation started from, over which it gains; None without one.
        trained: Whether anything was trained on the target; false for controls that re-estimate statistics.
        scores: As in ``evaluation/<dataset>.json``: ``Rank-1``, ``mAP``, …, and ``interval``.
        seconds: Rank-seconds (seconds times ranks) of all stages up to this one.
        adaptation: Rank-seconds of the stages after its start.
        images: Images seen by all of these stages.
        probes: Measurements of `probes.py`: ``camera from z``, ``camera from v``, ``identity from v``, their
            ``chance of camera`` and ``chance of identity``, ``reconstruction error``, ``moved``; those that could not
            be taken are missing or NaN; None if probes were not requested.
    """

    recipe: str
    row: str
    seed: int
    start: str | None
    trained: bool
    scores: dict[str, Any]
    seconds: float
    adaptation: float
    images: int
    probes: dict[str, float] | None = None


@dataclass(frozen=True)
class MeanSd:
    """A mean over seeds, and the sample standard deviation, None for one seed."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanSd:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """Results of one row over seeds.

    Attributes:
        name: What it is shown as: `row`, with the recipe where another recipe got other scores under the same name.
        row: Its name in the recipes.
        recipes: Those that have it, with equal scores.
        start: The name (as shown) of the row it started from.
        trained: As in `Result`.
        seeds: In ascending order.
        scores: Over the seeds.
        gains: Over its start, paired by seed; empty without a start.
        interval: 95 % intervals over identities, for a row of one seed only.
        seconds, adaptation, images: Means; see `Result`.
        probes: Over the seeds; None if no seed has any.
    """

    name: str
    row: str
    recipes: tuple[str, ...]
    start: str | None
    trained: bool
    seeds: tuple[int, ...]
    scores: dict[str, MeanSd]
    gains: dict[str, MeanSd]
    interval: dict[str, tuple[float, float]] | None
    seconds: float
    adaptation: float
    images: float
    probes: dict[str, MeanSd] | None


@dataclass(frozen=True)
class Comparison:
    """Results that can be compared: of one target, from one set of sources, with the same scoring."""

    dataset: str
    sources: tuple[str, ...]
    tta: str
    results: tuple[Result, ...]
    rerank: bool = False
    expand: int = 0

    @property
    def refined(self) -> RankingOptions:
        """What was done to the rankings."""
        return RankingOptions(self.rerank, self.expand)


def summarise(results: Iterable[Result]) -> list[Row]:
    """Means over seeds, a row for each (recipe, row), in the order of first appearance.

    Rows of one name that have equal scores for every seed they share are one, as the baseline that many recipes start
    from; those of one name with different scores are distinguished by their recipe.

    Raises:
        ValueError: A recipe's row has two results for one seed.
    """
    groups: list[_Group] = []
    for (recipe, row), by_seed in _by_recipe(results).items():
        group = next((group for group in groups if group.row == row and group.agrees(by_seed)), None)
        if group is None:
            groups.append(group := _Group(row, {}, {}))
        group.recipes[recipe] = None
        group.results |= {seed: one for seed, one in by_seed.items() if seed not in group.results
                          or (group.results[seed].probes is None and one.probes is not None)}
    names = [group.row for group in groups]
    shown = {id(group): f"{group.row} ({', '.join(group.recipes)})" if names.count(group.row) > 1 else group.row
             for group in groups}
    return [_row(group, _start(group, groups), lambda group: shown[id(group)]) for group in groups]


def remarks(rows: Sequence[Row]) -> list[str]:
    """Remarks that a reader must not miss, one sentence each.

    The best control with the rows trained on the target that it matches in mean mAP, and every such row whose gain in
    mAP over its start is not above zero beyond its spread (mean ≤ sd over seeds). A control is a row without training
    whose start had none on the target either.
    """
    named = {row.name: row for row in rows}
    controls = [row for row in rows if not row.trained and row.start is not None and "mAP" in row.scores
                and not _adapted(named.get(row.start), named)]
    best = max(controls, key=lambda control: control.scores["mAP"].mean, default=None)
    trained = [row for row in rows if row.trained and row.start is not None and "mAP" in row.scores]
    sentences = []
    matched = [row for row in trained if best and best.scores["mAP"].mean >= row.scores["mAP"].mean]
    if best and matched:
        those = ", ".join(f"{row.name} ({row.scores['mAP'].mean:.3f})" for row in matched)
        sentences.append(
            f"{best.name}, which trains nothing, does at least as well (mAP {best.scores['mAP'].mean:.3f}) as {those}."
        )
    for row in trained:
        gain = row.gains.get("mAP")
        if gain is not None and gain.mean <= (gain.sd or 0):
            beyond, spread = ("", "") if gain.sd is None else (" beyond the spread of seeds", f" ± {gain.sd:.3f}")
            sentences.append(f"{row.name} gains nothing over {row.start}{beyond}: mAP {gain.mean:+.3f}{spread}.")
    if any("mAP" in row.gains and row.gains["mAP"].sd is None for row in trained):
        sentences.append("Gains of one seed have no spread: other seeds may not show them.")
    return sentences


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A tree for `json.dumps`; its keys are above."""
    rows = summarise(comparison.results)
    tree = {**asdict(comparison), "rows": [asdict(row) for row in rows], "remarks": remarks(rows)}
    for result in tree["results"]:  # JSON knows no NaN
        result["probes"] = result["probes"] and _without_nan(result["probes"])
    return tree


@dataclass
class _Group:
    """What becomes one row: its recipes in order of appearance, and a result for each seed, with probes if any has."""

    row: str
    recipes: dict[str, None]
    results: dict[int, Result]

    def agrees(self, by_seed: Mapping[int, Result]) -> bool:
        shared = self.results.keys() & by_seed.keys()
        return bool(shared) and all(_comparable(self.results[seed]) == _comparable(by_seed[seed]) for seed in shared)


def _by_recipe(results: Iterable[Result]) -> dict[tuple[str, str], dict[int, Result]]:
    by_recipe: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        by_seed = by_recipe.setdefault((result.recipe, result.row), {})
        if result.seed in by_seed:
            raise ValueError(f"{result.recipe}: two results of {result.row!r} for seed {result.seed}; expected one")
        by_seed[result.seed] = result
    return by_recipe


def _comparable(result: Result) -> tuple[str | None, bool, dict[str, float]]:
    """What is the same in equal rows."""
    return result.start, result.trained, _numbers(result)


def _numbers(result: Result) -> dict[str, float]:
    return {name: value for name, value in result.scores.items()
            if isinstance(value, (int, float)) and name not in _COUNTS}


def _start(group: _Group, groups: Sequence[_Group]) -> _Group | None:
    """The group that a group started from: its own recipe's row of that name, else the only one of that name."""
    row = next(iter(group.results.values())).start
    named = [other for other in groups if other.row == row and other is not group]
    of_recipe = [other for other in named if other.recipes.keys() & group.recipes.keys()]
    if of_recipe:
        return of_recipe[0]
    return named[0] if len(named) == 1 else None


def _adapted(row: Row | None, named: Mapping[str, Row]) -> bool:
    """Whether training on the target went into a row."""
    for _ in named:  # so many steps at most, should rows name each other
        if row is None or row.start is None:
            return False
        if row.trained:
            return True
        row = named.get(row.start)
    return False


def _row(group: _Group, start: _Group | None, name: Callable[[_Group], str]) -> Row:
    results = [group.results[seed] for seed in sorted(group.results)]
    gains = [] if start is None else [
        {name: value - before[name] for name, value in _numbers(result).items() if name in before}
        for result in results if result.seed in start.results
        for before in [_numbers(start.results[result.seed])]
    ]
    probes = [result.probes for result in results if result.probes is not None]
    first = results[0]
    return Row(
        name=name(group),
        row=group.row,
        recipes=tuple(group.recipes),
        start=first.start if start is None else name(start),
        trained=first.trained,
        seeds=tuple(sorted(group.results)),
        scores=_spreads([_numbers(result) for result in results]),
        gains=_spreads(gains),
        interval=None if len(results) > 1 else {key: (low, high) for key, (low, high) in
                                                first.scores.get("interval", {}).items()},
        seconds=statistics.fmean(result.seconds for result in results),
        adaptation=statistics.fmean(result.adaptation for result in results),
        images=statistics.fmean(result.images for result in results),
        probes=_spreads(probes) if probes else None,
    )


def _spreads(values: Sequence[Mapping[str, float]]) -> dict[str, MeanSd]:
    """Mean and deviation of each number that all of `values` have."""
    seeds = [_without_nan(of_seed) for of_seed in values]
    return {name: MeanSd.of([of_seed[name] for of_seed in seeds]) for name in (seeds[0] if seeds else {})
            if all(name in of_seed for of_seed in seeds)}


def _without_nan(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}
