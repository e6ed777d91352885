"""Limbs, balls and patches of cloth in space, put onto a picture with a little shading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from embae.datasets.synthetic.palette import Colour, shade
from embae.datasets.synthetic.skeleton import STOUT, Point, View

Ring = tuple[float, float, float]
"""A horizontal cut through a garment: height, half width, half depth."""


@dataclass(frozen=True)
class Garment:
    """A stack of elliptic rings, from the top down: the shape of torso, coat or skirt."""

    rings: tuple[Ring, ...]

    @property
    def top(self) -> float:
        return self.rings[0][0]

    @property
    def bottom(self) -> float:
        return self.rings[-1][0]

    def ring(self, height: float) -> Ring:
        """The cut at ``height``, between the two nearest rings."""
        for upper, lower in pairwise(self.rings):
            if height >= lower[0]:
                share = min(1.0, max(0.0, (upper[0] - height) / (upper[0] - lower[0])))
                return height, upper[1] + share * (lower[1] - upper[1]), upper[2] + share * (lower[2] - upper[2])
        return self.rings[-1]

    def at(self, angle: float, height: float) -> Point:
        """The point of the surface at ``angle`` (0 in front, π/2 at the person's left)."""
        _, wide, deep = self.ring(height)
        return wide * math.sin(angle), height, deep * math.cos(angle)

    def heights(self, high: float, low: float) -> list[float]:
        """``high``, the rings between, ``low``."""
        return [high, *(ring[0] for ring in self.rings if low < ring[0] < high), low]


class Pen:
    """Draws what a view sees onto a picture; light comes from one side.

    Args:
        picture: An RGB picture, drawn upon.
        view: From where the person is seen.
        light: −1 (from the left) … 1 (from the right).
    """

    def __init__(self, picture: Image.Image, view: View, light: float) -> None:
        self.view = view
        self.light = light
        self._draw = ImageDraw.Draw(picture)

    def limb(self, points: Sequence[Point], radii: Sequence[float], colour: Colour) -> None:
        """A rounded, tapering limb through ``points``, darker on the side away from the light."""
        seen = [
            (*self.view.project(p), r * STOUT * self.view.scale * self.view.magnification(p[1]))
            for p, r in zip(points, radii, strict=True)
        ]
        self._limb(seen, shade(colour, 0.74))
        self._limb([(x + 0.22 * self.light * r, y - 0.1 * r, 0.76 * r) for x, y, r in seen], colour)

    def _limb(self, seen: list[tuple[float, float, float]], colour: Colour) -> None:
        for x, y, r in seen:
            self._draw.ellipse((x - r, y - r, x + r, y + r), colour)
        for (x0, y0, r0), (x1, y1, r1) in pairwise(seen):
            length = math.hypot(x1 - x0, y1 - y0)
            if length > 0:
                u, v = (y1 - y0) / length, (x0 - x1) / length
                self._draw.polygon(
                    (
                        (x0 + u * r0, y0 + v * r0),
                        (x1 + u * r1, y1 + v * r1),
                        (x1 - u * r1, y1 - v * r1),
                        (x0 - u * r0, y0 - v * r0),
                    ),
                    colour,
                )

    def ball(self, centre: Point, wide: float, high: float, colour: Colour) -> None:
        """An ellipse that faces the camera."""
        x, y = self.view.project(centre)
        size = self.view.scale * self.view.magnification(centre[1])
        self._draw.ellipse((x - wide * STOUT * size, y - high * size, x + wide * STOUT * size, y + high * size), colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A strap, a handle."""
        self._draw.line([self.view.project(p) for p in points], colour, max(1, round(width * self.view.scale)), "curve")

    def face(self, points: Sequence[Point], colour: Colour) -> None:
        """A flat polygon."""
        self._draw.polygon([self.view.project(p) for p in points], colour)

    def wrap(self, garment: Garment, angles: tuple[float, float], heights: tuple[float, float], colour: Colour) -> None:
        """The visible part of a patch of ``garment`` between two angles and two heights (high, low)."""
        high, low = min(heights[0], garment.top), max(heights[1], garment.bottom)
        if high <= low:
            return
        left: list[tuple[float, float]] = []
        right: list[tuple[float, float]] = []
        for height in garment.heights(high, low):
            start, stop = self._seen(garment, angles, height)
            if start >= stop:
                return
            left.append(self.view.project(garment.at(start, height)))
            right.append(self.view.project(garment.at(stop, height)))
        if self.view.elevation > 0.1 and stop - start > 0.5:
            # from above, the lower edge of a wide patch curves
            left += [self.view.project(garment.at(start + (stop - start) * i / 6, low)) for i in range(1, 6)]
        self._draw.polygon(left + right[::-1], colour)

    def _seen(self, garment: Garment, angles: tuple[float, float], height: float) -> tuple[float, float]:
        """What of ``angles`` the camera sees: of an ellipse, half a turn."""
        middle = self._middle(garment, height)
        half = (angles[1] - angles[0]) / 2
        turn = ((angles[0] + angles[1]) / 2 - middle + math.pi) % math.tau - math.pi
        return middle + max(turn - half, -math.pi / 2), middle + min(turn + half, math.pi / 2)

    def _middle(self, garment: Garment, height: float) -> float:
        """The angle of a garment that faces the camera."""
        _, wide, deep = garment.ring(height)
        return math.atan2(-math.sin(self.view.yaw) * wide, math.cos(self.view.yaw) * deep)

    def cloth(self, garment: Garment, colour: Colour) -> None:
        """A whole garment, lit from its side."""
        self.wrap(garment, (-7.0, 7.0), (garment.top, garment.bottom), colour)

    def dim(self, garment: Garment) -> tuple[float, float]:
        """The angles of ``garment`` that lie away from the light."""
        middle = self._middle(garment, garment.bottom)
        return (middle - 1.6, middle - 0.75) if self.light > 0 else (middle + 0.75, middle + 1.6)
