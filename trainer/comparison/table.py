"""A comparison as tables: plain text for a terminal, or Markdown as GitHub shows it.

A row's published figures stand in a line of their own below it. Both forms are made of the same cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from embae.datasets.console.tables import format_table, format_text
from embae.trainer.comparison.published import TTA, published
from embae.trainer.comparison.results import Comparison, MeanSd, Row, summarise
from embae.trainer.retrieval.ranking_options import PLAIN

SHOWN = ("Rank-1", "Rank-1-nd", "mAP", "mAP-nd")
GAINS = ("Rank-1", "mAP")
COSTS = ("rank-seconds", "of adaptation", "images seen")
# Column of the table of probes: the value that chance would give, where there is one.
PROBES = {
    "camera from z": "chance of camera",
    "camera from v": "chance of camera",
    "identity from v": "chance of identity",
    "reconstruction error": None,
    "moved": None,
}
_NONE = "–"
_CONTROL = " †"
_LEFT = ("model", "gain over")

Cells = list[list[str]]


def comparison_table(comparison: Comparison, *, markdown: bool = False, probes: bool = False) -> str:
    """Scores, gains and cost of every row.

    Args:
        comparison: What is compared.
        markdown: For GitHub, else for a terminal.
        probes: Adds the table of what probes found, if any row has them.
    """
    rows = summarise(comparison.results)
    if not rows:
        raise ValueError("no results to compare")
    form = _markdown if markdown else _text
    wrap = str if markdown else format_text
    parts = [wrap(heading(comparison)), form(score_cells(rows, comparison)), *map(wrap, _notes(rows, comparison))]
    if probes and any(row.probes for row in rows):
        title = "What is read out of z and v, by linear probes on images that these have not seen:"
        parts += [title if markdown else f"\n{format_text(title)}", form(probe_cells(rows))]
    return ("\n\n" if markdown else "\n").join(parts)


def heading(comparison: Comparison) -> str:
    """What was compared, in one line."""
    seeds = sorted({result.seed for result in comparison.results})
    return (f"{comparison.dataset}, from {', '.join(comparison.sources) or 'no sources'}, "
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}, "
            f"test-time augmentation: {comparison.tta}{comparison.refined.suffix}, mAP by trapezoid")


def score_cells(rows: Sequence[Row], comparison: Comparison) -> Cells:
    """The table of scores, its header first."""
    gains = [f"gain {name}" for name in GAINS]
    cells = [["model", *SHOWN, *gains, "gain over", *COSTS]]
    most = max(len(row.seeds) for row in rows)
    for row in rows:
        cells.append([
            _name(row, most),
            *(_score(row, name) for name in SHOWN),
            *(_spread(row.gains.get(name), "+.3f") for name in GAINS),
            row.start or _NONE,
            *(f"{cost:,.0f}" for cost in (row.seconds, row.adaptation, row.images)),
        ])
        paper = published(comparison.sources, comparison.dataset, row.row)
        if paper is not None:
            start = next((other.row for other in rows if other.name == row.start), row.start)
            before = published(comparison.sources, comparison.dataset, start) if start else None
            gained = {name: paper[name] - before[name] for name in GAINS} if before else {}
            cells.append(["", *(_paper(paper, name, ".3f") for name in SHOWN),
                          *(_paper(gained, name, "+.3f") for name in GAINS), "", "", "", ""])
    return cells


def probe_cells(rows: Sequence[Row]) -> Cells:
    """The table of probes, its header first; rows without any are left out."""
    probed = [row for row in rows if row.probes]
    most = max(len(row.seeds) for row in rows)
    return [["model", *PROBES], *([_name(row, most), *(_probe(row.probes or {}, name) for name in PROBES)]
                                  for row in probed)]


def _name(row: Row, most: int) -> str:
    fewer = f" ({len(row.seeds)} of {most} seeds)" if len(row.seeds) < most else ""
    return row.name + (_CONTROL if _control(row) else "") + fewer


def _control(row: Row) -> bool:
    return not row.trained and row.start is not None


def _score(row: Row, name: str) -> str:
    text = _spread(row.scores.get(name), ".3f")
    if row.interval and name in row.interval:
        low, high = row.interval[name]
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def _spread(value: MeanSd | None, form: str) -> str:
    if value is None or math.isnan(value.mean):
        return _NONE
    return f"{value.mean:{form}}" + (f" ± {value.sd:.3f}" if value.sd is not None else "")


def _paper(figures: Mapping[str, float], name: str, form: str) -> str:
    return f"paper: {figures[name]:{form}}" if name in figures else ""


def _probe(probes: Mapping[str, MeanSd], name: str) -> str:
    chance = probes.get(PROBES[name] or "")
    beside = f" (chance {chance.mean:.3f})" if chance is not None and name in probes else ""
    return _spread(probes.get(name), ".3f") + beside


def _notes(rows: Sequence[Row], comparison: Comparison) -> list[str]:
    notes = []
    if any(len(row.seeds) > 1 for row in rows):
        notes.append("± is the standard deviation over seeds; gains are paired by seed.")
    if any(row.interval for row in rows):
        notes.append("In brackets: 95 % interval over the identities of one seed.")
    if any(map(_control, rows)):
        notes.append(f"{_CONTROL.strip()} trains nothing on the target.")
    plain = comparison.refined == PLAIN
    alike = plain and comparison.tta == TTA
    if not alike and any(published(comparison.sources, comparison.dataset, row.row) for row in rows):
        notes.append(f"The paper's figures are with {TTA}" + ("." if plain else ", by plain distances."))
    return [" ".join(notes)] if notes else []


def _text(cells: Cells) -> str:
    """For a terminal, which is too narrow for all columns: scores, gains and costs below each other."""
    tables = []
    gains, probes = (*(f"gain {name}" for name in GAINS), "gain over"), tuple(PROBES)
    for names in (SHOWN, gains, COSTS, probes[:3], probes[3:]):
        if columns := [cells[0].index(name) for name in names if name in cells[0]]:
            header, *rows = [[row[column] for column in (0, *columns)] for row in cells]
            folded = [[cell.replace(" [", "\n[").replace(" (chance", "\n(chance") for cell in row] for row in rows]
            tables.append(format_table(header, [row for row in folded if any(row)], left=_LEFT))
    return "\n\n".join(tables)


def _markdown(cells: Cells) -> str:
    """A pipe table of GitHub's Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    rule = "| " + " | ".join("---" if name in _LEFT else "---:" for name in cells[0]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
