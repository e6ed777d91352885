"""Colours of clothes, skin and hair, as seen in neutral light."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

CLOTH: dict[str, Colour] = {
    "black": (28, 28, 32),
    "charcoal": (62, 64, 70),
    "grey": (128, 130, 134),
    "silver": (182, 184, 188),
    "white": (232, 231, 226),
    "sand": (206, 186, 150),
    "camel": (168, 124, 78),
    "brown": (92, 62, 44),
    "olive": (98, 100, 58),
    "forest": (36, 84, 56),
    "green": (66, 148, 84),
    "teal": (38, 126, 130),
    "sky": (132, 178, 218),
    "denim": (74, 104, 148),
    "blue": (44, 84, 178),
    "navy": (34, 44, 82),
    "purple": (106, 66, 140),
    "pink": (222, 146, 168),
    "coral": (226, 110, 90),
    "red": (190, 42, 46),
    "burgundy": (108, 32, 48),
    "orange": (228, 128, 40),
    "mustard": (204, 158, 48),
    "yellow": (236, 214, 72),
    "lime": (196, 226, 60),
}
SKIN: tuple[Colour, ...] = (
    (240, 206, 182),
    (224, 180, 150),
    (198, 150, 116),
    (158, 110, 80),
    (112, 76, 56),
    (78, 54, 42),
)
HAIR: dict[str, Colour] = {
    "black": (26, 22, 22),
    "dark": (56, 40, 32),
    "brown": (98, 68, 44),
    "blond": (196, 162, 104),
    "red": (150, 72, 36),
    "grey": (158, 156, 152),
}


def shade(colour: Colour, factor: float) -> Colour:
    """``colour`` made darker (below 1) or lighter (above 1)."""
    r, g, b = colour
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """``first`` with ``share`` of ``second`` in it."""
    r, g, b = (int(x + (y - x) * share) for x, y in zip(first, second, strict=True))
    return r, g, b


def dyed(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """``colour`` as one garment has it: two navy coats are not quite the same navy."""
    r, g, b = np.clip(
        np.array(colour) * (1 + spread * rng.normal()) + 255 * spread * rng.normal(size=3), 8, 250
    ).tolist()
    return int(r), int(g), int(b)
