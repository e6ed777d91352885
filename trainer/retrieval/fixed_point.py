"""Embeddings divided by their length, in numbers whose products are exact.

A matrix product gives equal rows different last bits, depending on their position and the shape. Hence components are
rounded to multiples of 2^-26: products of such components and all partial sums of them fit a float64 exactly, so that a
similarity is the same in any chunk, order, BLAS, thread or rank, and equal embeddings tie.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Numbers converted at a time, so that they are in the cache in all steps but the first.
_BLOCK = 2**16


def fixed_point(embeddings: np.ndarray) -> np.ndarray:
    """Unit vectors `(N, D)` in float64, components rounded to 2^-26; a zero vector stays zero. A copy."""
    unit = np.empty(embeddings.shape, dtype=np.float64)
    for rows in blocks(len(unit), _BLOCK // max(1, embeddings.shape[1])):
        x = unit[rows]
        x[...] = embeddings[rows]
        # Divide by the largest component first: the square of a huge or tiny one would overflow or underflow.
        largest = np.abs(x).max(axis=1, initial=0, keepdims=True)
        x /= np.where(largest > 0, largest, 1)
        x /= np.where(largest > 0, np.linalg.norm(x, axis=1, keepdims=True), 1)
        x *= 2.0**26
        np.rint(x, out=x)
        x *= 2.0**-26
    return unit


def check_finite(embeddings: np.ndarray, name: str, before: int = 0) -> None:
    """Checks that no embedding contains a NaN or an infinity.

    Args:
        embeddings: `(N, D)`.
        name: Start of the message, with a place for the number of the image: ``the features of image {} are``.
        before: Number of images before these; it is added to the number of the image.

    Raises:
        ValueError: An embedding is not finite.
    """
    for rows in blocks(len(embeddings), 2**20 // max(1, embeddings.shape[1])):
        finite = np.isfinite(embeddings[rows]).all(axis=1)
        if not finite.all():
            first = before + rows.start + int(np.argmin(finite))
            raise ValueError(f"{name.format(first)} not finite ({np.sum(~finite)} of {len(finite):,} like it)")


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `count` items, of `size` items each but the last; a size below 1 is taken as 1."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
