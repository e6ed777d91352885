"""The picture of a comparison: what was drawn, and the file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from helpers.invented_results import comparison, family
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from embae.trainer.comparison.plot import COLOURS, draw, plot_comparison
from embae.trainer.comparison.results import Comparison


def markers(figure: Figure, panel: int) -> list[tuple[float, int]]:
    """Published figures that were drawn, each with the number of its row."""
    lines = [line for line in figure.axes[panel].lines if line.get_marker() == "D"]
    points = [np.asarray(line.get_xydata())[0] for line in lines]
    return [(float(x), round(float(y))) for x, y in points]


def whiskers(figure: Figure, panel: int) -> list[tuple[float, float]]:
    """Ends of the error bars, from the first row on."""
    found = [box.lines[2][0].get_segments()[0] for box in figure.axes[panel].containers if hasattr(box, "lines")]
    return [(float(ends[0][0]), float(ends[1][0])) for ends in found]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_bar_a_row_and_score() -> None:
    figure = draw(comparison())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Rank-1", "mAP"]
    for axes, means in zip(figure.axes, ([0.41, 0.43, 0.441, 0.435], [0.21, 0.21, 0.25, 0.24]), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(means)  # type: ignore[attr-defined]
        assert [text.get_text() for text in axes.texts] == [f"{mean:.3f}" for mean in means]
    left = figure.axes[0]
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == ["Baseline", "EmbAE-fix", "EmbAE-cam", "BN per camera"]
    bottom, top = left.get_ylim()
    assert top < 0 < 3 < bottom  # the first row is on top


def test_kinds_have_their_colours() -> None:
    figure = draw(comparison())
    source, adapted, control = COLOURS.values()
    assert [to_hex(bar.get_facecolor()) for bar in figure.axes[1].patches] == [source, adapted, adapted, control]
    assert set(COLOURS) <= set(legend(figure))
    only = replace(comparison(), results=tuple(one for one in family() if one.trained))
    assert not any("control" in text for text in legend(draw(only)))


def test_whiskers() -> None:
    several = draw(comparison())
    assert whiskers(several, 0)[0] == pytest.approx((0.40, 0.42))
    assert whiskers(several, 1)[2] == pytest.approx((0.24, 0.26))
    assert "± standard deviation over seeds" in legend(several)
    single = draw(comparison([0]))
    assert whiskers(single, 0)[0] == pytest.approx((0.37, 0.42))
    assert "95 % interval of one seed" in legend(single)


def test_the_papers_figures() -> None:
    figure = draw(comparison())
    assert markers(figure, 0) == [(0.421, 0), (0.553, 1), (0.585, 2)]
    assert markers(figure, 1) == [(0.177, 0), (0.275, 1), (0.294, 2)]
    assert "arXiv 1807.10591" in legend(figure)
    other = draw(comparison(dataset="campus"))
    assert markers(other, 0) == [] and "arXiv 1807.10591" not in legend(other)


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "comparison.png"
    plot_comparison(comparison([0]), path)
    plot_comparison(comparison(), path)  # a second time, over the first
    assert [entry.name for entry in path.parent.iterdir()] == ["comparison.png"]
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 1500
        pixels = np.asarray(image.convert("RGB"))
    for colour in COLOURS.values():
        rgb = [int(colour[start:start + 2], 16) for start in (1, 3, 5)]
        assert (pixels == rgb).all(2).sum() > 2000


def test_long_names_and_many_rows_fit() -> None:
    many = tuple(replace(one, row=f"{one.row} with a rather long name, number {number}", start=None)
                 for number in range(6) for one in family([0]) if one.recipe == "embae-cam")
    whole = Comparison("market1501", tuple(f"source-{number}" for number in range(20)), "flip", many)
    figure = draw(whole)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for text in [*figure.axes[0].get_yticklabels(), *figure.texts, *figure.legends[0].get_texts()]:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text.get_text()
    assert figure.axes[0].get_window_extent(renderer).width > figure.bbox.width / 5


def test_no_display_and_no_global_state() -> None:
    check = ("import sys, embae.trainer.comparison.plot; "
             "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)")
    assert run([sys.executable, "-c", check]).returncode == 0


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        plot_comparison(replace(comparison(), results=()), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
