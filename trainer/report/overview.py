"""Describes the run in words and tables: summary, scores, data, environment."""

from __future__ import annotations

from collections.abc import Iterator

from embae.trainer.report.markup import Markup, joined, section, table, tag
from embae.trainer.report.stages import duration
from embae.trainer.runs.score_table import SHOWN
from embae.trainer.runs.summary import DatasetScores, DatasetSummary, RunSummary


def summary(facts: RunSummary) -> Markup:
    """The summary: results, and what is missing."""
    return joined([tag("div", *_tiles(facts), class_="tiles"), *_missing(facts)])


def _tiles(facts: RunSummary) -> Iterator[Markup]:
    if facts.scores:
        scored = facts.scores[0]
        row = list(scored.rows)[-1]
        start = facts.recipe.start(row) if row in facts.recipe.evaluate else None
        who = ", ".join(filter(None, [row, scored.refined.label]))
        for name in ("Rank-1", "mAP"):
            value, before = scored.rows[row][name], scored.rows.get(start or "", {}).get(name)
            gain = f"{value - before:+.3f} over {start}" if before is not None else ""
            yield _tile(f"{value:.3f}", f"{name} on {scored.dataset}, {who}", gain)
    took = [one for one in facts.costs.values() if one]
    yield _tile(f"{len(took)} of {len(facts.costs)}", "stages done", "")
    if took:
        yield _tile(f"{sum(one.images for one in took):,}", "images seen", "")
        yield _tile(duration(sum(one.rank_seconds for one in took)), "of ranks' time", "")


def _tile(value: str, label: str, below: str) -> Markup:
    return tag("div", tag("b", value), tag("span", label), *([tag("small", below)] if below else []), class_="tile")


def _missing(facts: RunSummary) -> Iterator[Markup]:
    notices = [f"The run {one}" for one in facts.ended]
    if facts.unfinished:
        notices.append(f"This run is not finished: {', '.join(facts.unfinished)} "
                    f"{'is' if len(facts.unfinished) == 1 else 'are'} still to do. The same command resumes.")
    if not facts.scores:
        why = "no row of the recipe is scored" if not facts.recipe.evaluate else "it has scored nothing yet"
        notices.append(f"There are no scores: {why}.")
    notices += [f"{seen.name} is not here: {seen.missing}" for seen in facts.data if seen.missing]
    if notices:
        yield tag("ul", *(tag("li", line) for line in notices), class_="missing")


def scores(facts: RunSummary) -> Markup:
    """One table for each dataset; a click on a header sorts it."""
    if not facts.scores:
        return section("scores", "Scores", tag("p", "No scores yet.", class_="none"))
    return section("scores", "Scores", *(part for scored in facts.scores for part in _scored(facts, scored)))


def _scored(facts: RunSummary, scored: DatasetScores) -> Iterator[Markup]:
    queries = next(iter(scored.rows.values()))["queries"]
    how = f"{scored.tta}{scored.refined.suffix}"
    yield tag("p", tag("b", scored.dataset), f", {queries:,} queries, test-time augmentation: {how}, mAP "
              "by trapezoid; below the scores, 95 % intervals over resampled identities.")
    rows = []
    for row, values in scored.rows.items():
        start = facts.recipe.start(row) if row in facts.recipe.evaluate else None
        before = scored.rows.get(start or "")
        gain = f"{values['mAP'] - before['mAP']:+.3f}" if before else "–"
        cells = [(values[name], _value(values[name], values["interval"].get(name))) for name in SHOWN]
        rows.append([row, *cells, (values["mAP"] - before["mAP"] if before else "", gain)])
    yield table(["model", *SHOWN, "gain in mAP"], rows)


def _value(value: float, interval: list[float] | None) -> Markup:
    return joined([f"{value:.3f}", *([tag("small", f"{interval[0]:.3f} … {interval[1]:.3f}")] if interval else [])])


def data(facts: RunSummary) -> Markup:
    """The datasets of the run, from their cards."""
    head = ["dataset", "role", "licence of its card", "training images", "identities", "cameras", "query", "gallery"]
    rows = [_seen(seen) for seen in facts.data]
    notes = [tag("li", tag("b", seen.name), f": {seen.notes}") for seen in facts.data if seen.notes]
    return section("data", "Data", table(head, rows, sortable=False, numbers=3, cards=True),
                   *([tag("ul", *notes)] if notes else []))


def _seen(seen: DatasetSummary) -> list[str]:
    if seen.missing:
        return [seen.name, seen.role, "not here", *["–"] * 5]
    counts = [seen.images["train"], seen.identities, seen.cameras, seen.images["query"], seen.images["gallery"]]
    return [seen.name, seen.role, seen.licence or "not stated", *(f"{count:,}" for count in counts)]


def environment(facts: RunSummary) -> Markup:
    """The environment of the run."""
    model, recipe = facts.recipe.model, facts.recipe
    settings = {"backbone": model.backbone, "embedding": model.embedding, "nuisance": f"{model.nuisance.dim} a head, "
             f"{model.nuisance.per}", "input": "{} × {} (height × width)".format(*recipe.data.image),
             "loader": recipe.data.loader, "seed": recipe.seed}
    rows = [[key, value] for key, value in settings.items()]
    lines = [tag("li", line) for line in facts.ran_with] or [tag("li", "recipe.yaml does not say what it ran with.")]
    return section("environment", "Environment", tag("ul", *lines),
                   table(["", ""], rows, sortable=False, numbers=9))
