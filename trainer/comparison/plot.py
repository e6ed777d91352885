"""A comparison as a picture: a bar a row for Rank-1 and mAP, how sure they are, and what the paper got.

Drawn with matplotlib's objects alone, on its Agg canvas: no display, and none of pyplot's global state.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from embae.trainer.comparison.published import published
from embae.trainer.comparison.results import Comparison, Row, summarise
from embae.trainer.comparison.table import heading

SCORES = ("Rank-1", "mAP")
# Colours that people who see no red or green tell apart too (Okabe and Ito 2008), light enough for black on them.
COLOURS = {
    "trained on the sources only": "#bdbdbd",
    "adapted by training on the target": "#56b4e9",
    "control: trains nothing on the target": "#e69f00",
}
_PAPER = "#c1272d"
# Inches: of a row, and of all that is not rows.
_ROW, _REST, _WIDTH = 0.36, 1.6, 10.0


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the picture as PNG, to a temporary name first.

    Args:
        comparison: What is compared.
        path: Where to; its folder is made.

    Raises:
        ValueError: There are no results.
    """
    figure = draw(comparison)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png", dpi=150)
    os.replace(partial, path)


def draw(comparison: Comparison) -> Figure:
    """The picture, rows from top to bottom in the order of the table."""
    rows = summarise(comparison.results)
    if not rows:
        raise ValueError("no results to compare")
    height = _REST + _ROW * len(rows)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    papers = [published(comparison.sources, comparison.dataset, row.row) or {} for row in rows]
    left, right = figure.subplots(1, len(SCORES), sharey=True)
    for axes, score in zip((left, right), SCORES, strict=True):
        _bars(axes, score, rows, [paper.get(score) for paper in papers])
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.invert_yaxis()
    figure.suptitle(textwrap.fill(heading(comparison), 125, break_on_hyphens=False), fontsize=10, x=0.01, ha="left")
    handles = [*(Patch(color=colour, label=kind) for kind, colour in COLOURS.items() if kind in set(map(_kind, rows))),
               Line2D([], [], color="black", label=_sure(rows))]
    if any(papers):
        handles.append(Line2D([], [], linestyle="", marker="D", color=_PAPER, markersize=6, label="arXiv 1807.10591"))
    figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return figure


def _bars(axes: Axes, score: str, rows: Sequence[Row], paper: Sequence[float | None]) -> None:
    for place, (row, figure) in enumerate(zip(rows, paper, strict=True)):
        if score not in row.scores:
            continue
        mean = row.scores[score].mean
        low, high = _range(row, score)
        axes.barh(place, mean, height=0.66, color=COLOURS[_kind(row)])
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", capsize=3, linewidth=1.1)
        if figure is not None:
            # At the bar's lower edge, since the whisker is in its middle.
            axes.plot(figure, place + 0.3, marker="D", color=_PAPER, markersize=6, markeredgecolor="white", zorder=4)
        # Where the bar starts: there neither whisker nor marker is in the way.
        axes.text(0.008, place, f"{mean:.3f}", va="center", ha="left", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_title(score, fontsize=10, loc="left")
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _range(row: Row, score: str) -> tuple[float, float]:
    """Ends of the whisker: mean ± sd over seeds, else the interval, else nothing."""
    spread = row.scores[score]
    if spread.sd is not None:
        return spread.mean - spread.sd, spread.mean + spread.sd
    low, high = (row.interval or {}).get(score, (spread.mean, spread.mean))
    return min(low, spread.mean), max(high, spread.mean)


def _kind(row: Row) -> str:
    source, adapted, control = COLOURS
    return source if row.start is None else adapted if row.trained else control


def _sure(rows: Sequence[Row]) -> str:
    several, single = any(len(row.seeds) > 1 for row in rows), any(len(row.seeds) == 1 for row in rows)
    names = ["± standard deviation over seeds"] * several + ["95 % interval of one seed"] * single
    return ", else ".join(names)
