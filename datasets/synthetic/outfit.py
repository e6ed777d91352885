"""Clothes of the trunk: their cut, pattern and what shows of them from each side."""

from __future__ import annotations

import math

from embae.datasets.synthetic.drawing import Garment, Pen, Ring
from embae.datasets.synthetic.palette import mix, shade
from embae.datasets.synthetic.person import Person, Upper

LONG_SLEEVES: tuple[Upper, ...] = ("shirt", "hoodie", "jacket", "coat", "vest")

# below the hips, and how much wider than there
_HEM: dict[Upper, tuple[float, float]] = {
    "tee": (0.02, 1.02),
    "shirt": (0.045, 1.04),
    "hoodie": (0.025, 1.08),
    "jacket": (0.04, 1.1),
    "coat": (0.2, 1.22),
    "vest": (0.02, 1.06),
    "dress": (0.21, 1.5),
}
_BULK: dict[Upper, float] = {
    "tee": 1.0,
    "shirt": 1.02,
    "hoodie": 1.09,
    "jacket": 1.1,
    "coat": 1.12,
    "vest": 1.08,
    "dress": 0.97,
}


def trunk(person: Person) -> Garment:
    """The garment worn on the trunk."""
    hem, flare = _HEM[person.upper]
    body: tuple[Ring, ...] = (
        (0.85, 0.034, 0.032),
        (0.828, 0.088, 0.05),
        (0.79, 0.11, 0.06),
        (0.72, 0.103, 0.067),
        (0.61, 0.088, 0.062),
        (person.legs + 0.01, 0.096, 0.068),
        (person.legs - hem, 0.096 * flare, 0.068 * flare),
    )
    size = person.build * _BULK[person.upper]
    return Garment(tuple((y, wide * size, deep * size) for y, wide, deep in body))


def skirt(person: Person) -> Garment:
    """From the waist to above the knees."""
    size = person.build
    top, bottom = person.legs + 0.05, person.legs - 0.2
    return Garment(
        ((top, 0.092 * size, 0.064 * size), (person.legs, 0.1 * size, 0.07 * size), (bottom, 0.125 * size, 0.1 * size))
    )


def draw_trunk(pen: Pen, person: Person) -> None:
    """The trunk with pattern, opening and straps."""
    shape = trunk(person)
    pen.cloth(shape, person.upper_colour)
    _pattern(pen, person, shape)
    if person.upper == "vest":
        for high in (0.74, 0.62):
            pen.wrap(shape, (-7.0, 7.0), (high, high - 0.025), (214, 216, 210))
    if person.open_front:
        pen.wrap(shape, (-0.42, 0.42), (shape.top, shape.bottom), person.second_colour)
    elif person.upper in ("jacket", "coat", "shirt"):
        pen.wrap(shape, (-0.05, 0.05), (shape.top, shape.bottom), shade(person.upper_colour, 0.55))
    if person.upper == "hoodie":
        pen.wrap(shape, (2.2, 4.1), (shape.top, 0.77), shade(person.upper_colour, 0.8))
        pen.wrap(shape, (-0.6, 0.6), (0.6, 0.53), shade(person.upper_colour, 0.8))
    if person.upper in ("tee", "dress"):
        pen.wrap(shape, (-0.7, 0.7), (shape.top, 0.826), person.skin)
    _shadow(pen, shape, person)
    if person.bag == "backpack":
        for side in (-1, 1):
            pen.wrap(shape, (side * 0.62 - 0.12, side * 0.62 + 0.12), (0.84, 0.63), person.bag_colour)
    elif person.bag == "shoulder":
        _sling(pen, person, shape)


def _pattern(pen: Pen, person: Person, shape: Garment) -> None:
    around = (-7.0, 7.0)
    second = person.second_colour
    if person.pattern == "stripes":
        high = 0.795
        while high > shape.bottom + 0.01:
            pen.wrap(shape, around, (high, high - 0.028), second)
            high -= 0.06
    elif person.pattern == "pinstripes":
        for i in range(14):
            middle = (i + 0.5) * math.tau / 14
            pen.wrap(shape, (middle - 0.07, middle + 0.07), (0.8, shape.bottom), mix(person.upper_colour, second, 0.7))
    elif person.pattern == "checks":
        for i in range(8):
            middle = (i + 0.5) * math.tau / 8
            pen.wrap(
                shape, (middle - 0.19, middle + 0.19), (0.82, shape.bottom), mix(person.upper_colour, second, 0.45)
            )
        high = 0.79
        while high > shape.bottom + 0.02:
            pen.wrap(shape, around, (high, high - 0.03), mix(person.upper_colour, second, 0.65))
            high -= 0.075
    elif person.pattern == "block":
        pen.wrap(shape, around, (shape.top, 0.7), second)
    elif person.pattern == "logo":
        pen.wrap(shape, (-0.6, 0.6), (0.765, 0.655), second)
        pen.wrap(shape, (math.pi - 0.7, math.pi + 0.7), (0.78, 0.69), second)


def _shadow(pen: Pen, shape: Garment, person: Person) -> None:
    """The far side from the light, drawn over the pattern's edge; and the hem."""
    pen.wrap(shape, pen.dim(shape), (0.81, shape.bottom), shade(person.upper_colour, 0.72))
    pen.wrap(shape, (-7.0, 7.0), (shape.bottom + 0.012, shape.bottom), shade(person.upper_colour, 0.62))


def _sling(pen: Pen, person: Person, shape: Garment) -> None:
    """A strap from one shoulder to the other hip, in front and at the back."""
    side = person.bag_side
    for front in (True, False):
        steps = []
        for i in range(5):
            across = -side * (0.75 - 1.7 * i / 4)
            steps.append(shape.at(across if front else math.pi - across, 0.83 - (0.83 - 0.5) * i / 4))
        if pen.view.depth(steps[2]) > 0:
            pen.line(steps, 0.02, person.bag_colour)
