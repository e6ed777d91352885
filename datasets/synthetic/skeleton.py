"""A walking skeleton in space, and how a camera sees a point of it.

Body coordinates: the person is 1 high and stands at the origin; x to the person's left, y up, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embae.datasets.synthetic.person import Person

Point = tuple[float, float, float]

STOUT = 1.2
"""People are drawn this much wider than they are, to fill a box of 1:2 as a detector's boxes are filled."""

SHOULDER = 0.825
"""Height of the shoulders; the hips are at ``Person.legs``."""


@dataclass(frozen=True)
class View:
    """Where a person stands in the picture and from where the camera looks.

    Attributes:
        yaw: Where the person faces: 0 towards the camera, π/2 to the right of the picture, π away.
        elevation: Angle at which the camera looks down.
        scale: Pixels a unit of length.
        foot: Pixel between the feet.
    """

    yaw: float
    elevation: float
    scale: float
    foot: tuple[float, float]

    def magnification(self, height: float) -> float:
        """A camera that looks down is nearer to the head than to the feet."""
        return 1.0 + 0.45 * math.sin(self.elevation) * (height - 0.5)

    def depth(self, point: Point) -> float:
        """How far a point lies on the camera's side of the body's axis."""
        return point[2] * math.cos(self.yaw) - point[0] * math.sin(self.yaw)

    def project(self, point: Point) -> tuple[float, float]:
        """Pixel of a point."""
        x, y, z = point
        across = x * math.cos(self.yaw) + z * math.sin(self.yaw)
        up = y * math.cos(self.elevation) - self.depth(point) * math.sin(self.elevation)
        return (
            self.foot[0] + STOUT * self.scale * across * self.magnification(y),
            self.foot[1] - self.scale * up,
        )


@dataclass(frozen=True)
class Pose:
    """Joints of one moment: for the left (+1) and the right (−1) side.

    ``legs[side]`` is hip, knee, ankle, toe; ``arms[side]`` is shoulder, elbow, hand.
    """

    legs: dict[int, tuple[Point, Point, Point, Point]]
    arms: dict[int, tuple[Point, Point, Point]]


def walk(person: Person, phase: float, bent_arm: int) -> Pose:
    """The pose at ``phase`` (0 … 2π) of a step; ``bent_arm`` (−1, 0, 1) holds something up, say a telephone."""
    legs: dict[int, tuple[Point, Point, Point, Point]] = {}
    arms: dict[int, tuple[Point, Point, Point]] = {}
    bone = person.legs / 2
    for side in (1, -1):
        swing = person.stride * math.sin(phase if side == 1 else phase + math.pi)
        # the knee bends while its leg comes forward
        knee_bend = 0.15 + 0.7 * max(0.0, math.cos(phase if side == 1 else phase + math.pi)) * person.stride * 2
        x = side * 0.045 * person.build
        hip = (x, person.legs + 0.01, 0.0)
        knee = (x, hip[1] - bone * math.cos(swing + 0.06), bone * math.sin(swing + 0.06))
        shin = swing - knee_bend * 0.6
        length = bone - 0.03
        ankle = (x, max(0.035, knee[1] - length * math.cos(shin)), knee[2] + length * math.sin(shin))
        toe = (x + side * 0.012, max(0.012, ankle[1] - 0.03), ankle[2] + 0.085)
        legs[side] = (hip, knee, ankle, toe)

        shoulder = (side * 0.107 * person.build, SHOULDER - 0.015, 0.0)
        carries = person.bag_side == side and person.bag in ("handbag", "carrier", "suitcase")
        # arms swing against the legs; a loaded arm hangs, the suitcase is pulled behind
        arm = -0.55 * swing * (0.2 if carries else 1.0) - (0.45 if carries and person.bag == "suitcase" else 0.0)
        out = shoulder[0] + side * 0.022
        elbow = (out, shoulder[1] - 0.165 * math.cos(arm), 0.165 * math.sin(arm))
        if bent_arm == side and not carries:
            hand = (side * 0.05, elbow[1] + 0.07, elbow[2] + 0.12)
        else:
            hand = (
                out + side * 0.004,
                elbow[1] - 0.155 * math.cos(arm + 0.22),
                elbow[2] + 0.155 * math.sin(arm + 0.22),
            )
        arms[side] = (shoulder, elbow, hand)
    return Pose(legs, arms)
