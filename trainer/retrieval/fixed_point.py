"""Embeddings divided by their length, in numbers whose products are exact.

A matmul gives equal rows unequal last bits, depending on their place and on the shape. Hence components are rounded to
multiples of 2^-26: products of such components and all partial sums of them fit a float64 exactly, so that a similarity
is the same in any chunk, order, BLAS, thread or rank, and equal embeddings tie.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Numbers converted at a time, so that all steps but the first find them in the cache.
_BLOCK = 2**16


def fixed_point(embeddings: np.ndarray) -> np.ndarray:
    """Unit vectors `(N, D)` in float64, components rounded to 2^-26; a zero vector stays zero. A copy."""
    found = np.empty(embeddings.shape, dtype=np.float64)
    for rows in blocks(len(found), _BLOCK // max(1, embeddings.shape[1])):
        x = found[rows]
        x[...] = embeddings[rows]
        # The largest component first: the square of a huge or tiny one would leave float64.
        largest = np.abs(x).max(axis=1, initial=0, keepdims=True)
        x /= np.where(largest > 0, largest, 1)
        x /= np.where(largest > 0, np.linalg.norm(x, axis=1, keepdims=True), 1)
        x *= 2.0**26
        np.rint(x, out=x)
        x *= 2.0**-26
    return found


def check_finite(embeddings: np.ndarray, name: str, before: int = 0) -> None:
    """Refuses a NaN or an infinity.

    Args:
        embeddings: `(N, D)`.
        name: Begins the sentence, with a place for the number of the image: ``the features of image {} are``.
        before: Images before these, which the number counts too.

    Raises:
        ValueError: An embedding is not finite.
    """
    for rows in blocks(len(embeddings), 2**20 // max(1, embeddings.shape[1])):
        finite = np.isfinite(embeddings[rows]).all(axis=1)
        if not finite.all():
            first = before + rows.start + int(np.argmin(finite))
            raise ValueError(f"{name.format(first)} not finite ({np.sum(~finite)} of {len(finite):,} like it)")


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `count` things, of `size` each but the last; of one where size is less."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
