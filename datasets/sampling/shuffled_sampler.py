"""Shuffled images, for stages that use no labels."""

from __future__ import annotations

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.sampling.keyed_random import generator, scatter
from embae.datasets.sampling.view import View


class ShuffledSampler:
    """Batches of shuffled images.

    A pass over the data has ⌊n/B⌋ batches in an order that depends on the images' content, not on their labels or on
    how they were sharded: without any pid the batches stay the same. So there is no window of shards here. A dataset is
    sharded in the order of its identities, so images of shards that are read together would show the same people more
    often than by chance: the target's labels would leak into training that must not use them.

    Args:
        view: What to sample from.
        batch: Images per global batch.
        seed: The run's seed.
        stage: The stage's name; stages of one run draw different batches.

    Raises:
        DataError: Fewer images than a batch.
    """

    def __init__(self, view: View, *, batch: int, seed: int, stage: str):
        if not 1 <= batch <= len(view):
            raise DataError(f"datasets {', '.join(view.names)}: {len(view)} images, but the global batch is {batch}; "
                            f"expected 1 to {len(view)}. Set a smaller batch.")
        self.view, self.batch, self.images, self._key = view, batch, len(view), (seed, stage)
        self._content = view.fingerprints()
        self._passes: dict[int, np.ndarray] = {}

    def plan(self, step: int) -> np.ndarray:
        """Rows of the global batch, `(B,)` int64."""
        pass_number, position = divmod(step, len(self.view) // self.batch)
        permutation = self._passes.get(pass_number)
        if permutation is None:
            salt = generator(*self._key, "images", pass_number).integers(2**64, dtype=np.uint64)
            permutation = np.argsort(scatter(self._content ^ salt), kind="stable")
            # Code that reads ahead may be in the next pass already.
            neighbours = {key: order for key, order in self._passes.items() if abs(key - pass_number) == 1}
            self._passes = neighbours | {pass_number: permutation}
        return permutation[position * self.batch:(position + 1) * self.batch]
