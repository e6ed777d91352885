"""Random streams by name: what is drawn for one thing never depends on what was drawn before it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def stream(domain: str, seed: int, *names: str | int) -> np.random.Generator:
    """A generator that depends on its arguments alone: ``stream("plaza", 0, "person", 17)``."""
    # crc32, since hash() of a string differs from process to process
    keys = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng([seed, zlib.crc32(domain.encode()), *keys])


def pick(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """One key of ``weights``, drawn in proportion to its weight (much faster than ``rng.choice`` for a few keys)."""
    left = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        left -= weight
        if left < 0:
            return choice
    return choice


def between(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """Uniform in ``span``."""
    return span[0] + (span[1] - span[0]) * float(rng.random())
