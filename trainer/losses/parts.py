"""The parts of a model, and what a stage does with each."""

from __future__ import annotations

from typing import Literal

PartName = Literal["backbone", "embedding", "nuisance", "decoder", "classifier", "discriminator"]
PARTS: tuple[PartName, ...] = ("backbone", "embedding", "nuisance", "decoder", "classifier", "discriminator")
RARE_PARTS: tuple[PartName, ...] = ("classifier", "discriminator")
"""Parts that are absent if a recipe does not name them."""
Use = Literal["train", "frozen", "absent"]
