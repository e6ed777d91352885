"""Who a person is: everything that stays the same from camera to camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embae.datasets.synthetic.palette import CLOTH, HAIR, SKIN, Colour, dyed
from embae.datasets.synthetic.streams import pick

Upper = Literal["tee", "shirt", "hoodie", "jacket", "coat", "vest", "dress"]
Pattern = Literal["plain", "stripes", "pinstripes", "checks", "block", "logo"]
Lower = Literal["trousers", "shorts", "skirt"]
Hair = Literal["bald", "short", "bob", "long", "ponytail", "bun"]
Headwear = Literal["none", "cap", "beanie", "hat", "scarf"]
Bag = Literal["none", "backpack", "shoulder", "handbag", "carrier", "suitcase"]

OPENS = ("shirt", "jacket", "coat")
"""What may be worn open, so that a second garment shows from the front."""


@dataclass(frozen=True)
class Wardrobe:
    """How often things are worn in a domain: each field maps a choice to its weight."""

    uppers: Mapping[Upper, float]
    upper_colours: Mapping[str, float]
    patterns: Mapping[Pattern, float]
    lowers: Mapping[Lower, float]
    lower_colours: Mapping[str, float]
    shoe_colours: Mapping[str, float]
    bags: Mapping[Bag, float]
    bag_colours: Mapping[str, float]
    headwear: Mapping[Headwear, float]
    hair: Mapping[Hair, float]
    hair_colours: Mapping[str, float]
    skin: tuple[float, ...]
    open_front: float


@dataclass(frozen=True)
class Person:
    """One identity: body, clothes and what is carried."""

    build: float
    legs: float
    head: float
    skin: Colour
    hair: Hair
    hair_colour: Colour
    headwear: Headwear
    headwear_colour: Colour
    upper: Upper
    upper_colour: Colour
    second_colour: Colour
    pattern: Pattern
    open_front: bool
    lower: Lower
    lower_colour: Colour
    shoe_colour: Colour
    bag: Bag
    bag_colour: Colour
    bag_side: int
    stride: float


def dress(rng: np.random.Generator, wardrobe: Wardrobe) -> Person:
    """A person who dresses from ``wardrobe``.

    Palettes are short and garments few, so that many people share any one attribute: it takes several to tell two
    apart.
    """

    def cloth(weights: Mapping[str, float]) -> Colour:
        return dyed(rng, CLOTH[pick(rng, weights)], 0.045)

    upper = pick(rng, wardrobe.uppers)
    name = pick(rng, wardrobe.upper_colours)
    # a second colour that can be told from the first, whatever the palette
    others = {other: weight for other, weight in wardrobe.upper_colours.items() if other != name}
    return Person(
        build=float(np.clip(rng.normal(1.0, 0.11), 0.78, 1.35)),
        legs=float(np.clip(rng.normal(0.49, 0.012), 0.46, 0.52)),
        head=float(np.clip(rng.normal(1.0, 0.06), 0.88, 1.15)),
        skin=dyed(rng, SKIN[pick(rng, dict(enumerate(wardrobe.skin)))], 0.02),
        hair=pick(rng, wardrobe.hair),
        hair_colour=dyed(rng, HAIR[pick(rng, wardrobe.hair_colours)], 0.02),
        headwear=pick(rng, wardrobe.headwear),
        headwear_colour=cloth(wardrobe.bag_colours),
        upper=upper,
        upper_colour=dyed(rng, CLOTH[name], 0.045),
        second_colour=cloth(others),
        pattern=pick(rng, wardrobe.patterns),
        open_front=upper in OPENS and bool(rng.random() < wardrobe.open_front),
        lower=pick(rng, wardrobe.lowers),
        lower_colour=cloth(wardrobe.lower_colours),
        shoe_colour=cloth(wardrobe.shoe_colours),
        bag=pick(rng, wardrobe.bags),
        bag_colour=cloth(wardrobe.bag_colours),
        bag_side=1 if rng.random() < 0.5 else -1,
        stride=float(rng.uniform(0.3, 0.5)),
    )
