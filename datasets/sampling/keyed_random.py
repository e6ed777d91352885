"""Random numbers that are a pure function of their purpose, without any global generator."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A Philox generator, keyed by the run's seed and by words and numbers that describe what it draws.

    The same arguments give the same stream on every rank, machine and thread, regardless of earlier draws.
    """
    # Each word has its length before it, so that different lists of words give different keys.
    words = "".join(f"{len(word)}:{word}" for word in map(str, (seed, *purpose)))
    key = hashlib.blake2b(words.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def scatter(x: np.ndarray) -> np.ndarray:
    """Scatters 64-bit numbers (the finaliser of SplitMix64), one to one: `(N,)` uint64 to `(N,)` uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
