"""P identities × K images per batch, for stages that use labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.turns import turn
from embae.datasets.sampling.view import PERSON, View


@dataclass(frozen=True)
class PKOptions:
    """How batches are composed.

    Attributes:
        P: Identities per batch; one number, or one per dataset by name.
        K: Images per identity, at least 1.
        weights: Share of the batches by dataset name; by default in proportion to labelled images.
        mix: Pool the identities of all datasets, so that a batch mixes them: the control for the paper's claim that it
            should not.
        window: From how many shards of a dataset identities are drawn at a time. None: from all shards, in an order
            that does not depend on how the images are sharded. That also applies to a dataset whose identities are not
            stored adjacently.
    """

    P: int | Mapping[str, int]
    K: int
    weights: Mapping[str, float] | None = None
    mix: bool = False
    window: int | None = None


class PKSampler:
    """P identities × K images per batch, all from one dataset (arXiv 1807.10591 §3.3; Hermans et al. 2017).

    Datasets take turns in proportion to their weights. Identities come from a new permutation for each pass of ⌊n/P⌋
    batches, so none appears twice in a pass; the identities left out of a pass are different each time. The K images of
    an identity are spread over its cameras; an image repeats only if the identity has fewer than K.

    With a window of w, shards too come in a new order for each pass. An identity of the shard at position s is placed
    uniformly in [s, s + w), on a circle as long as there are shards. At every place, identities of exactly w shards
    occur, and a stretch of length l meets w + ⌈l⌉ shards at most; a batch is a stretch of about P / (identities per
    shard). Because of the circle, the first and last batches of a pass are mixed as well as the others: the w − 1
    shards in use where the circle closes occur at both ends of the pass. A window of all shards is a full shuffle.

    Args:
        view: What to sample from; only images of persons with an identity are used.
        options: How batches are composed.
        seed: The run's seed.
        stage: The stage's name; stages of one run draw different batches.

    Raises:
        DataError: A dataset has no labels, or fewer than P identities.
    """

    def __init__(self, view: View, options: PKOptions, *, seed: int, stage: str):
        self.view, self.K, self._key, self._window = view, options.K, (seed, stage), options.window
        tables = view.identities
        images = [int(table[:, 2].sum()) for table in tables]
        self._names = view.names
        sizes = [options.P.get(name, 0) if isinstance(options.P, Mapping) else options.P for name in self._names]
        if options.mix:
            tables, images, sizes = [np.concatenate(tables)], [sum(images)], sizes[:1]
            self._names = ["+".join(self._names)]
        for name, table, size in zip(self._names, tables, sizes, strict=True):
            _check_identities(name, len(table), size)
        self._weights = [options.weights[name] if options.weights and not options.mix else count
                         for name, count in zip(self._names, images, strict=True)]
        self._tables, self._P = tables, sizes
        self.batch = max(sizes) * options.K
        self.images = sum(images)
        self._shards = [np.unique(view.shards(table[:, 0]), return_inverse=True)[1] for table in tables
                        if options.window]
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def plan(self, step: int) -> np.ndarray:
        """Rows of the global batch: `(P·K,)` int64, the K images of an identity adjacent."""
        dataset, turn_number = turn(step, self._weights)
        table, size = self._tables[dataset], self._P[dataset]
        pass_number, position = divmod(turn_number, len(table) // size)
        identities = self._permutation(dataset, pass_number)[position * size:(position + 1) * size]
        return self.pick_images(table[identities], step)

    def _permutation(self, dataset: int, pass_number: int) -> np.ndarray:
        """The identities of a pass in order. The n mod P left out rotate, so all are left out equally often."""
        permutation = self._passes.get((dataset, pass_number))
        if permutation is None:
            purpose = *self._key, "identities", self._names[dataset]
            count = len(self._tables[dataset])
            left_out = count % self._P[dataset]
            rotation = generator(*purpose).permutation(count)
            identities = rotation[(pass_number * left_out + np.arange(left_out, count)) % count]
            permutation = self._ordered(identities, dataset, generator(*purpose, pass_number))
            # Code that reads ahead may be in the next pass already.
            neighbours = {key: order for key, order in self._passes.items()
                          if key[0] != dataset or abs(key[1] - pass_number) == 1}
            self._passes = neighbours | {(dataset, pass_number): permutation}
        return permutation

    def _ordered(self, identities: np.ndarray, dataset: int, draw: np.random.Generator) -> np.ndarray:
        if not self._window or not self.view.is_grouped_by_identity(dataset):
            return draw.permutation(identities)
        shard = self._shards[dataset][identities]
        count = int(self._shards[dataset].max()) + 1
        place = draw.permutation(count)[shard] + draw.random(len(identities)) * min(self._window, count)
        return identities[np.argsort(place % count)]

    def pick_images(self, identities: np.ndarray, step: int) -> np.ndarray:
        """K rows of each identity, from its cameras in turn: one image of each camera, then a second of each, …"""
        rows = np.concatenate([np.arange(first, past) for first, past, _ in identities.tolist()])
        owner = np.repeat(np.arange(len(identities)), identities[:, 1] - identities[:, 0])
        person = self.view.column("role", rows) == PERSON
        rows, owner, count = rows[person], owner[person], identities[:, 2]
        draw = generator(*self._key, "images", step).random(len(rows))
        camid = self.view.column("camid", rows)
        # Number the images of each (identity, camera) in random order, …
        order = np.lexsort((draw, camid, owner))
        new = np.diff(owner[order], prepend=-1).astype(bool) | np.diff(camid[order], prepend=-1).astype(bool)
        begins = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        nth = np.empty(len(order), np.int64)
        nth[order] = np.arange(len(order)) - begins
        # … and take each identity's images by that number.
        order = np.lexsort((draw, nth, owner))
        take = np.arange(self.K) % count[:, None] + (np.cumsum(count) - count)[:, None]
        return rows[order[take]].reshape(-1)


def _check_identities(dataset: str, identities: int, size: int) -> None:
    if not identities:
        raise DataError(f"dataset {dataset}: no image has a pid; a labelled stage needs identities. Name labelled "
                        "datasets as its source, or shard this one with its labels (docs/data.md).")
    if not 1 <= size <= identities:
        raise DataError(f"dataset {dataset}: {identities} identities, but P is {size}; expected 1 to {identities}. Set "
                        f"a smaller P, for this dataset alone if necessary (P: {{{dataset}: {identities}, …}}).")
