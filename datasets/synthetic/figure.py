"""A whole person, painted from the far side to the near side."""

from __future__ import annotations

import math

from PIL import Image

from embae.datasets.synthetic.drawing import Pen
from embae.datasets.synthetic.outfit import LONG_SLEEVES, draw_trunk, skirt
from embae.datasets.synthetic.palette import shade
from embae.datasets.synthetic.person import Person
from embae.datasets.synthetic.skeleton import Point, Pose, View


def draw_person(picture: Image.Image, person: Person, view: View, pose: Pose, light: float) -> None:
    """Draws ``person`` in ``pose`` onto ``picture``, an RGB image."""
    pen = Pen(picture, view, light)
    # what hangs at a side, and the arm there, lies before or behind the trunk
    near_side = -1 if math.sin(view.yaw) > 0 else 1
    facing = math.cos(view.yaw)

    def bag(near: bool) -> None:
        point = (0.0, 0.7, -0.12) if person.bag == "backpack" else _bag_place(person, pose)
        if (view.depth(point) >= -0.02) == near:
            _bag(pen, person, pose)

    bag(near=False)
    if person.hair in ("long", "ponytail") and facing > 0:
        _hair_down(pen, person)
    profile = abs(math.sin(view.yaw)) > 0.4
    if profile:
        _arm(pen, person, pose, -near_side)
    for side in (-near_side, near_side):
        _leg(pen, person, pose, side)
    if person.lower == "skirt" and person.upper != "dress":
        shape = skirt(person)
        pen.cloth(shape, person.lower_colour)
        pen.wrap(shape, pen.dim(shape), (shape.top, shape.bottom), shade(person.lower_colour, 0.74))
    pen.limb([(0, 0.83, 0), (0, 0.89, 0.01)], [0.03, 0.028], shade(person.skin, 0.85))
    draw_trunk(pen, person)
    if not profile:
        _arm(pen, person, pose, -near_side)
    _arm(pen, person, pose, near_side)
    _head(pen, person, facing)
    if person.hair in ("long", "ponytail") and facing <= 0:
        _hair_down(pen, person)
    bag(near=True)


def _along(start: Point, stop: Point, share: float) -> Point:
    x, y, z = (a + share * (b - a) for a, b in zip(start, stop, strict=True))
    return x, y, z


def _leg(pen: Pen, person: Person, pose: Pose, side: int) -> None:
    hip, knee, ankle, toe = pose.legs[side]
    size = person.build**0.7
    bare = person.upper == "dress" or person.lower == "skirt"
    if bare:
        pen.limb([hip, knee, ankle], [0.045 * size, 0.034 * size, 0.02 * size], person.skin)
    elif person.lower == "shorts":
        pen.limb([knee, ankle], [0.034 * size, 0.02 * size], person.skin)
        pen.limb([hip, _along(hip, knee, 0.82)], [0.056 * size, 0.05 * size], person.lower_colour)
    else:
        pen.limb([hip, knee, ankle], [0.055 * size, 0.042 * size, 0.032 * size], person.lower_colour)
    pen.limb([ankle, toe], [0.025, 0.018], person.shoe_colour)


def _arm(pen: Pen, person: Person, pose: Pose, side: int) -> None:
    shoulder, elbow, hand = pose.arms[side]
    size = person.build**0.5
    thick = 1.15 if person.upper in ("coat", "jacket", "hoodie") else 1.0
    sleeve = person.second_colour if person.upper == "vest" or person.pattern == "block" else person.upper_colour
    if person.upper in LONG_SLEEVES:
        pen.limb([hand], [0.021], person.skin)
        radii = [0.031 * size * thick, 0.028 * size * thick, 0.023 * thick]
        pen.limb([shoulder, elbow, _along(elbow, hand, 0.88)], radii, sleeve)
    else:
        pen.limb([shoulder, elbow, hand], [0.028 * size, 0.024 * size, 0.019], person.skin)
        pen.limb([shoulder, _along(shoulder, elbow, 0.72)], [0.033 * size, 0.033 * size], sleeve)


def _head(pen: Pen, person: Person, facing: float) -> None:
    size = person.head
    hair = person.skin if person.hair == "bald" else person.hair_colour
    covered = person.headwear == "scarf"
    if covered:
        hair = person.headwear_colour
        pen.limb([(0, 0.9, 0), (0, 0.835, 0)], [0.05 * size, 0.058], hair)
    pen.ball((0, 0.928, -0.006), 0.051 * size, 0.066 * size, hair)
    if person.hair == "bob" and not covered:
        pen.ball((0, 0.908, -0.012), 0.061 * size, 0.056 * size, hair)
    if facing > -0.35:
        # in profile the face is the front half of the head only
        width = 0.042 * size * (0.72 + 0.28 * max(0.0, facing))
        pen.ball((0, 0.913, 0.019), width, 0.05 * size, person.skin)
        pen.ball((0, 0.894, 0.024), width * 0.55, 0.012, shade(person.skin, 0.82))
        if facing > 0.1:
            for side in (-1, 1):
                pen.ball((side * 0.018, 0.925, 0.035), 0.008, 0.006, shade(person.skin, 0.35))
    if person.hair == "bun" and not covered:
        pen.ball((0, 0.965, -0.04), 0.027, 0.027, shade(hair, 0.9))
    _headwear(pen, person, size, facing)


def _headwear(pen: Pen, person: Person, size: float, facing: float) -> None:
    colour = person.headwear_colour
    if person.headwear == "cap":
        pen.ball((0, 0.962, -0.004), 0.053 * size, 0.034 * size, colour)
        if facing > -0.3:
            pen.limb([(0, 0.95, 0.04), (0, 0.947, 0.08)], [0.026, 0.014], shade(colour, 0.8))
    elif person.headwear == "beanie":
        pen.ball((0, 0.962, -0.006), 0.055 * size, 0.042 * size, colour)
        pen.ball((0, 0.944, -0.006), 0.056 * size, 0.014, shade(colour, 0.75))
    elif person.headwear == "hat":
        pen.ball((0, 0.953, 0), 0.092, 0.02, shade(colour, 0.8))
        pen.ball((0, 0.974, 0), 0.05 * size, 0.03, colour)


def _hair_down(pen: Pen, person: Person) -> None:
    """Hair that falls behind the shoulders."""
    if person.headwear == "scarf":
        return
    wide = 0.052 if person.hair == "long" else 0.02
    start = 0.915 if person.hair == "long" else 0.945
    pen.limb([(0, start, -0.03), (0, 0.8, -0.06)], [wide * person.head, wide * 0.9], shade(person.hair_colour, 0.95))


def _bag_place(person: Person, pose: Pose) -> tuple[float, float, float]:
    if person.bag == "shoulder":
        return (person.bag_side * 0.13 * person.build, 0.5, -0.01)
    x, y, z = pose.arms[person.bag_side][2]
    return (x + person.bag_side * 0.01, y, z)


def _bag(pen: Pen, person: Person, pose: Pose) -> None:
    colour = person.bag_colour
    if person.bag == "backpack":
        pen.limb([(0, 0.775, -0.1), (0, 0.61, -0.115)], [0.062, 0.072], colour)
        pen.limb([(-0.025, 0.625, -0.17), (0.025, 0.625, -0.17)], [0.03, 0.03], shade(colour, 0.82))
        return
    x, y, z = _bag_place(person, pose)
    if person.bag == "shoulder":
        pen.limb([(x, y + 0.02, z - 0.035), (x, y + 0.01, z + 0.035)], [0.05, 0.05], colour)
    elif person.bag == "handbag":
        pen.line([(x, y, z - 0.03), (x, y - 0.06, z)], 0.012, shade(colour, 0.6))
        pen.limb([(x, y - 0.09, z - 0.03), (x, y - 0.09, z + 0.03)], [0.045, 0.045], colour)
    elif person.bag == "carrier":
        for low, tone in ((0.2, 1.0), (0.1, 0.86)):
            pen.face(
                [
                    (x, y - 0.03, z - 0.06),
                    (x + 0.04, y - 0.03, z + 0.06),
                    (x + 0.04, y - low, z + 0.065),
                    (x, y - low, z - 0.065),
                ],
                shade(colour, tone),
            )
        pen.line([(x, y, z), (x + 0.02, y - 0.04, z)], 0.01, shade(colour, 0.6))
    elif person.bag == "suitcase":
        z -= 0.17
        pen.line([(x, y, z + 0.17), (x, 0.27, z)], 0.012, (70, 70, 74))
        pen.limb([(x, 0.23, z), (x, 0.08, z)], [0.062, 0.066], colour)
        pen.line([(x, 0.235, z), (x, 0.06, z)], 0.012, shade(colour, 0.6))
