"""Random numbers depend on what they are for, and on nothing else."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator, scatter


def test_same_words_same_numbers() -> None:
    first = generator(3, "stage", "images", 7).random(5)
    generator(3, "stage", "images", 8).random(100)
    np.random.default_rng().random()
    assert (generator(3, "stage", "images", np.int64(7)).random(5) == first).all()


def test_each_word_counts() -> None:
    asked = [(3, "stage", 7), (4, "stage", 7), (3, "stages", 7), (3, "stage", 8), (3, "stage"), (3, "stage", 7, 0),
             (3, "stage", 0), (37, "stage"), (3, "st", "age", 7), (3 + 2**32, "stage", 7), (3, 7, "stage")]
    drawn = [generator(*words).integers(2**63) for words in asked]  # type: ignore[arg-type]
    assert len(set(drawn)) == len(asked)


def test_numbers_are_fixed_for_ever() -> None:
    """A run that is resumed with a later version goes on with the batches it would have had."""
    assert generator(0, "embedding", "images", 0).integers(1000, size=4).tolist() == [44, 114, 333, 980]


def test_scatter_is_one_to_one_and_turns_half_of_the_bits() -> None:
    x = np.arange(1, 2001, dtype=np.uint64)
    assert len(np.unique(scatter(x))) == 2000
    turned = np.unpackbits((scatter(x) ^ scatter(x ^ np.uint64(1))).view(np.uint8)).mean()
    assert 0.45 < turned < 0.55
