"""Small charts as inline SVG: they use the page's colours, light or dark, and need no library in the browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embae.trainer.report.markup import Markup, tag

MOST = 240  # points of a line
_FAR = 20  # times: values that a linear axis would press flat
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22  # pixels around a plot


@dataclass(frozen=True)
class LineStyle:
    """How a line chart is drawn.

    Attributes:
        by: What the x axis counts.
        log: A logarithmic y axis, if values are above zero and far apart.
        dots: Mark every point.
        marks: Where on the x axis to draw an upright line.
    """

    by: str = "step"
    log: bool = False
    dots: bool = False
    marks: Sequence[float] = ()


PLAIN = LineStyle()


def line_chart(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, label: str,
               style: LineStyle = PLAIN) -> Markup:
    """Lines over steps, with the smallest and largest values at the axes.

    Args:
        series: Name → x and y; what is not finite is left out.
        label: What a screen reader says.
        style: How it is drawn.
    """
    width, height = 320, 150  # pixels; the page may scale it
    lines = {name: line for name, (x, y) in series.items() if len(line := _finite(x, y))}
    if not lines:
        return tag("p", "No values.", class_="none")
    every = np.concatenate(list(lines.values()))
    (x0, y0), (x1, y1) = every.min(0), every.max(0)
    whole = tuple((every == np.rint(every)).all(0))
    if log := style.log and y0 > 0 and y1 > _FAR * y0:
        lines = {name: np.stack([line[:, 0], np.log10(line[:, 1])], 1) for name, line in lines.items()}
        y0, y1 = np.log10(y0), np.log10(y1)
    spread = (y1 - y0) or abs(y1) or 1.0
    y0, y1 = (y0 - 0.05 * spread, y1 + 0.05 * spread)
    place = _Scale(x0, x1, y0, y1, width, height)
    drawn = [*_frame(place, log, whole)]
    for x in style.marks:
        (at, bottom), (_, top) = place(x, y0), place(x, y1)
        drawn.append(tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=f"{bottom:.1f}", y2=f"{top:.1f}", class_="mark"))
    for number, line in enumerate(lines.values()):
        points = [place(x, y) for x, y in _thin(line)]
        drawn.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=f"line c{number}"))
        if style.dots or len(points) == 1:
            drawn += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"c{number}") for x, y in points]
    return _svg(drawn, width, height, label)


def histogram(shares: Mapping[str, np.ndarray], edges: np.ndarray, *, label: str, width: int = 420,
              height: int = 170) -> Markup:
    """Histograms over the same bins, drawn over each other.

    Args:
        shares: Name → share of each bin.
        edges: `(bins + 1,)`.
        label: What a screen reader says.
        width, height: Pixels.
    """
    top = max(float(share.max()) for share in shares.values()) or 1.0
    place = _Scale(float(edges[0]), float(edges[-1]), 0.0, top * 1.05, width, height)
    drawn = [*_frame(place, False, (False, False))]
    for number, share in enumerate(shares.values()):
        corners = [(edges[0], 0.0)]
        for at, value in enumerate(share):
            corners += [(edges[at], value), (edges[at + 1], value)]
        corners.append((edges[-1], 0.0))
        corner_text = " ".join("{:.1f},{:.1f}".format(*place(float(x), float(y))) for x, y in corners)
        drawn.append(tag("polygon", points=corner_text, class_=f"area c{number}"))
    return _svg(drawn, width, height, label)


def scatter(points: np.ndarray, groups: np.ndarray, *, label: str, size: int = 300) -> Markup:
    """Points `(N, 2)`, coloured by their group `(N,)`: 0 … 7 by named colours, further ones by hue."""
    low, high = points.min(0), points.max(0)
    scale = (size - 12) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    drawn = []
    count = int(groups.max()) + 1
    for group in range(count):
        hue = None if count <= len(PALETTE) else f"fill:hsl({group * 137.508 % 360:.0f} 60% {(45, 60)[group % 2]}%)"
        some = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.6) for x, y in
                (points[groups == group] - middle) * scale + size / 2]
        drawn.append(tag("g", *some, class_=f"c{group}" if hue is None else None, style=hue))
    return _svg(drawn, size, size, label)


PALETTE = tuple(f"c{number}" for number in range(8))
"""Classes of the page's colours (Okabe and Ito 2008)."""


def legend(names: Sequence[str]) -> Markup:
    """Names of the colours in use."""
    return tag("p", *(tag("span", tag("i", class_=f"c{number}"), name) for number, name in enumerate(names)),
               class_="legend")


class _Scale:
    """Converts values to pixels."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float, width: int, height: int):
        self.x0, self.x1, self.y0, self.y1, self.width, self.height = x0, x1, y0, y1, width, height

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / ((self.x1 - self.x0) or 1)
        up = (y - self.y0) / ((self.y1 - self.y0) or 1)
        return (_LEFT + across * (self.width - _LEFT - _RIGHT),
                self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM))


def _frame(place: _Scale, log: bool, whole: tuple[bool, ...]) -> list[Markup]:
    """Ticks and their lines; whole numbers only if all x, or all y, are whole."""
    drawn = []
    for y in _decades(place.y0, place.y1, 4) if log else _ticks(place.y0, place.y1, 5, whole[1]):
        (left, at), (right, _) = place(place.x0, y), place(place.x1, y)
        drawn.append(tag("line", x1=f"{left:.1f}", x2=f"{right:.1f}", y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid"))
        drawn.append(tag("text", _number(10**y if log else y), x=_LEFT - 5, y=f"{at + 3.5:.1f}", class_="end"))
    for x in _ticks(place.x0, place.x1, 5, whole[0]):
        at, bottom = place(x, place.y0)
        last = at > place.width - 3 * _RIGHT  # which would be cut
        drawn.append(tag("text", _number(x), x=place.width - 3 if last else f"{at:.1f}", y=f"{bottom + 15:.1f}",
                         class_="edge" if last else "middle"))
    return drawn


def _ticks(low: float, high: float, count: int, least: float) -> list[float]:
    """Round numbers between two values, at least `least` apart."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = max(least, next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw))
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float, count: int) -> list[float]:
    """Logarithms of round numbers between two: of 1, 2 and 5, or of powers of ten where those are enough."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [[power + math.log10(factor) for power in powers for factor in factors
              if low <= power + math.log10(factor) <= high] for factors in ((1,), (1, 2, 5))]
    return ticks[0] if len(ticks[0]) >= count else ticks[1]


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _finite(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    line = np.array([x, y], float).T.reshape(-1, 2)
    return line[np.isfinite(line).all(1)]


def _thin(line: np.ndarray) -> np.ndarray:
    """At most `MOST` points: each is the mean of equally many neighbours."""
    if len(line) <= MOST:
        return line
    return np.stack([part.mean(0) for part in np.array_split(line, MOST)])


def _svg(drawn: Sequence[Markup], width: int, height: int, label: str) -> Markup:
    return tag("svg", *drawn, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, width=width, height=height)
