"""Features of invented people, for clustering."""

from __future__ import annotations

import numpy as np


def people(seed: int, count: int = 60, dim: int = 6, each: int = 8, noise: float = 0.4) -> np.ndarray:
    """`(count, dim)` float32, some `each` images of a person."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // each), dim))
    x = centres[rng.integers(0, len(centres), count)] + noise * rng.standard_normal((count, dim))
    return x.astype(np.float32)
