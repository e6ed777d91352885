"""What stands behind the people: one picture for each camera, of which every image shows a part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from embae.datasets.synthetic.palette import Colour, dyed, mix, shade

Backdrop = Literal["facade", "columns", "trees", "shops", "quay"]
Floor = Literal["slabs", "tiles", "lawn", "boards"]

SPREAD = 3.0
"""Width of a scene in image heights: room for six images side by side."""


@dataclass(frozen=True)
class SceneStyle:
    """What the scenes of a domain have in common."""

    backdrops: tuple[Backdrop, ...]
    floors: tuple[Floor, ...]
    wall_colours: tuple[Colour, ...]
    floor_colours: tuple[Colour, ...]
    accents: tuple[Colour, ...]


@dataclass(frozen=True)
class _Site:
    """What a backdrop is drawn with: its foot is where the floor begins, a unit about half a metre."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    width: int
    foot: int
    unit: float
    wall: Colour
    accent: Colour


def paint_scene(rng: np.random.Generator, style: SceneStyle, height: int, elevation: float) -> Image.Image:
    """An RGB picture, ``height`` high.

    Args:
        rng: The camera's own stream.
        style: What the domain's scenes look like.
        height: In pixels.
        elevation: The steeper the camera looks down, the more floor it sees.
    """
    width = round(SPREAD * height)
    wall = dyed(rng, style.wall_colours[rng.integers(len(style.wall_colours))], 0.05)
    floor = dyed(rng, style.floor_colours[rng.integers(len(style.floor_colours))], 0.05)
    accent = style.accents[rng.integers(len(style.accents))]
    picture = Image.new("RGB", (width, height), wall)
    draw = ImageDraw.Draw(picture)
    foot = int(height * float(np.clip(0.72 - 1.0 * elevation + rng.normal(0, 0.06), 0.12, 0.8)))

    backdrop = style.backdrops[rng.integers(len(style.backdrops))]
    _BACKDROPS[backdrop](_Site(draw, rng, width, foot, height / 12, wall, accent))
    draw.rectangle((0, foot, width, height), floor)
    _floor(draw, rng, style.floors[rng.integers(len(style.floors))], (width, height, foot), floor)
    if rng.random() < 0.6:
        # a band along the wall's foot, or a marked line on the floor
        y = foot + (height - foot) * float(rng.choice([0.0, 0.12, 0.3]))
        draw.rectangle((0, y, width, y + height / 34), accent)
    return _weather(rng, picture)


def _facade(at: _Site) -> None:
    step, top = at.unit * at.rng.uniform(2.2, 4.5), at.unit * at.rng.uniform(0.0, 1.5)
    glass = mix(shade(at.wall, 0.4), (90, 110, 130), 0.5)
    x = 0.0
    while x < at.width:
        if at.rng.random() < 0.25:
            at.draw.rectangle((x, top + at.unit, x + step * 0.6, at.foot), shade(at.accent, 0.7))
        else:
            for y in np.arange(top, at.foot - at.unit, at.unit * 3.2):
                at.draw.rectangle((x, y, x + step * 0.55, y + at.unit * 2), glass, shade(at.wall, 1.2), 2)
        x += step


def _columns(at: _Site) -> None:
    tile = at.unit * at.rng.uniform(0.7, 1.3)
    for x in np.arange(0, at.width, tile):
        at.draw.line((x, 0, x, at.foot), shade(at.wall, 0.85))
    for y in np.arange(0, at.foot, tile):
        at.draw.line((0, y, at.width, y), shade(at.wall, 0.85))
    at.draw.rectangle((0, at.foot * 0.35, at.width, at.foot * 0.35 + at.unit), at.accent)
    step = at.unit * at.rng.uniform(5, 9)
    for x in np.arange(at.rng.uniform(0, step), at.width, step):
        at.draw.rectangle((x, 0, x + at.unit * 1.4, at.foot + at.unit), shade(at.wall, 0.6))
        at.draw.rectangle((x, 0, x + at.unit * 0.5, at.foot + at.unit), shade(at.wall, 0.75))


def _trees(at: _Site) -> None:
    for y in np.arange(0, at.foot, at.unit * 0.5):
        at.draw.line((0, y, at.width, y), shade(at.wall, 0.86))
    x = 0.0
    while x < at.width:
        green = mix(shade((62, 104, 50), at.rng.uniform(0.6, 1.3)), at.accent, 0.15)
        top = at.rng.uniform(-0.1, 0.7) * at.foot
        at.draw.rectangle((x - 0.3 * at.unit, top, x + 0.3 * at.unit, at.foot), (74, 58, 44))
        for _ in range(7):
            cx, cy = x + at.rng.normal(0, 1.2) * at.unit, top + at.rng.normal(0, 0.9) * at.unit
            r = at.unit * at.rng.uniform(0.8, 1.6)
            at.draw.ellipse((cx - r, cy - r, cx + r, cy + r), shade(green, at.rng.uniform(0.75, 1.2)))
        x += at.unit * at.rng.uniform(2.5, 7)


def _shops(at: _Site) -> None:
    x = 0.0
    while x < at.width:
        step = at.unit * at.rng.uniform(4, 8)
        inside = mix((238, 226, 196), dyed(at.rng, at.accent, 0.3), at.rng.uniform(0, 0.45))
        at.draw.rectangle((x, 0, x + step - 0.5 * at.unit, at.foot), inside)
        at.draw.rectangle(
            (x, at.foot * 0.1, x + step - 0.5 * at.unit, at.foot * 0.1 + 1.3 * at.unit), dyed(at.rng, at.accent, 0.35)
        )
        for _ in range(4):
            left, high = x + at.rng.uniform(0, 0.8) * step, at.unit * at.rng.uniform(1, 3)
            at.draw.rectangle(
                (left, at.foot - high, left + at.unit * 0.8, at.foot), dyed(at.rng, shade(inside, 0.7), 0.2)
            )
        x += step


def _quay(at: _Site) -> None:
    at.draw.rectangle((0, at.foot * 0.45, at.width, at.foot), (84, 108, 116))
    for _ in range(60):
        x, y = at.rng.uniform(0, at.width), at.rng.uniform(0.47, 1.0) * at.foot
        at.draw.line((x, y, x + at.unit * at.rng.uniform(0.5, 2), y), (118, 142, 148), 2)
    x = 0.0
    while x < at.width:
        size = at.unit * at.rng.uniform(2, 6)
        if at.rng.random() < 0.6:
            box = dyed(at.rng, at.accent, 0.3)
            top = at.foot * at.rng.uniform(0.1, 0.5)
            at.draw.rectangle((x, top, x + size, at.foot * 0.95), box)
            for rib in np.arange(x, x + size, at.unit * 0.4):
                at.draw.line((rib, top, rib, at.foot * 0.95), shade(box, 0.8), 2)
        x += size + at.unit * at.rng.uniform(0, 5)


_BACKDROPS = {"facade": _facade, "columns": _columns, "trees": _trees, "shops": _shops, "quay": _quay}


def _floor(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: Floor, size: tuple[int, int, int], colour: Colour
) -> None:
    width, height, foot = size
    deep = height - foot
    joint = shade(colour, 0.78)
    if kind == "lawn":
        for _ in range(500):
            x, y = rng.uniform(0, width), foot + deep * rng.random()
            draw.line((x, y, x + 2, y - 4), shade(colour, rng.uniform(0.7, 1.3)), 2)
        path = foot + deep * rng.uniform(0.2, 0.7)
        draw.polygon(((0, path), (width, path - deep * 0.1), (width, height), (0, height)), (164, 156, 142))
        return
    rows = int(rng.integers(5, 10))
    # joints lie closer together the further away they are
    levels = [foot + deep * (i / rows) ** 1.7 for i in range(rows + 1)]
    if kind == "tiles":
        for i, (y0, y1) in enumerate(pairwise(levels)):
            step = height * 0.1 * (0.5 + i / rows)
            for j, x in enumerate(np.arange(0, width, step)):
                if (i + j) % 2:
                    draw.rectangle((x, y0, x + step, y1), shade(colour, 0.84))
        return
    for y in levels:
        draw.line((0, y, width, y), joint, 2)
    if kind == "slabs":
        slope = math.tan(rng.uniform(-0.5, 0.5))
        for x in np.arange(-width * 0.3, width * 1.3, height * rng.uniform(0.2, 0.35)):
            draw.line((x, foot, x + slope * deep, height), joint, 2)


def _weather(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Light and dirt: nothing real is of one colour."""
    coarse = rng.normal(1.0, 0.12, (5, 13, 1)) * rng.normal(1.0, 0.02, (5, 13, 3))
    dimmed = Image.fromarray(np.clip(coarse * 128, 0, 255).astype(np.uint8))
    light = np.asarray(dimmed.resize(picture.size, Image.Resampling.BICUBIC))
    grain = rng.normal(0, 5, (picture.height, picture.width, 1))
    return Image.fromarray(np.clip(np.asarray(picture) * (light / 128.0) + grain, 0, 255).astype(np.uint8))
