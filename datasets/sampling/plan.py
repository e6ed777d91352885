"""The batch plan: which images make up the batch of a step, as a pure function of (seed, stage, step).

Every rank computes the plan alike, without communication, and takes its share, so the global batches do not depend on
world size, workers or threads, and the position in the data is one integer: the step.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.sampling.keyed_random import generator, scatter
from embae.datasets.sampling.view import PERSON, View


class Sampler(Protocol):
    """A batch plan over a view."""

    view: View
    batch: int
    """Most rows of a global batch."""

    def plan(self, step: int) -> np.ndarray:
        """Rows of the view that make up the global batch of this step, `(B,)` int64."""
        ...


def share(rows: int, part: int, parts: int) -> slice:
    """Where one part of a batch lies: ⌊part·B/parts⌋ … ⌊(part+1)·B/parts⌋, so parts differ in size by one at most."""
    return slice(part * rows // parts, (part + 1) * rows // parts)


def turn(step: int, weights: Sequence[float]) -> tuple[int, int]:
    """Whose turn a step is, and how many turns that one had before.

    The datasets are cut into two groups of about equal weight, and these again. Of the first t turns of both, a group
    of share s has ⌊ts + ½⌋: in proportion, spread evenly, and known for any step without walking there. Of two or
    three datasets none is ever more than one turn from its share; of more, a little more than one at worst.

    Args:
        step: From 0.
        weights: One a dataset, positive, in any unit.

    Returns:
        The number of the dataset and of its turn, both from 0.
    """
    order = sorted(range(len(weights)), key=weights.__getitem__)
    total = [0.0, *accumulate(weights[dataset] for dataset in order)]
    low, high = 0, len(order)
    while high - low > 1:
        half = (total[low] + total[high]) / 2
        cut = bisect_left(total, half, low + 1, high - 1)
        if cut - 1 > low and half - total[cut - 1] <= total[cut] - half:
            cut -= 1
        part = (total[cut] - total[low]) / (total[high] - total[low])
        before, after = math.floor(step * part + 0.5), math.floor((step + 1) * part + 0.5)
        low, high, step = (low, cut, before) if after > before else (cut, high, step - before)
    return order[low], step


class PKSampler:
    """P identities × K images a batch, all of one dataset (arXiv 1807.10591 §3.3; Hermans et al. 2017).

    Datasets take turns in proportion to their weights. Identities come from a fresh permutation per pass of ⌊n/P⌋
    batches, so none appears twice in a pass; those left out are others each time. The K images of an identity are
    spread over its cameras; they repeat only where it has fewer than K.

    With a `window` of w, shards come in a fresh order per pass too, and an identity of the shard at position s stands
    at a place drawn from [s, s + w) on a circle as long as there are shards. At every place identities of just w shards
    come up, and a stretch of length l meets w + ⌈l⌉ at most; a batch is a stretch of P / (identities a shard), about.
    On a circle, so that the first and last batches of a pass are mixed as well as the others: the w − 1 shards which
    are under way where it closes come up at both ends of the pass. A window of all shards is a full shuffle.

    Args:
        view: What to sample from; only images of persons with an identity are taken.
        P: Identities a batch, one number or one a dataset by name.
        K: Images an identity, at least 1.
        seed: The run's seed.
        stage: The stage's name; stages of one run draw different batches.
        weights: Share of the batches by dataset name; by default in proportion to labelled images.
        mix: Pool the identities of all datasets, so that a batch mixes them: the control for the paper's claim that it
            should not.
        window: From how many shards of a dataset identities are drawn at a time; None: from all, in the same order
            however the images are sharded. That is also so of a dataset whose identities do not lie side by side.

    Raises:
        DataError: A dataset has no labels, or fewer than P identities.
    """

    def __init__(self, view: View, *, P: int | Mapping[str, int], K: int, seed: int, stage: str,
                 weights: Mapping[str, float] | None = None, mix: bool = False, window: int | None = None):
        self.view, self.K, self._key, self._window = view, K, (seed, stage), window
        tables = view.identities
        images = [int(table[:, 2].sum()) for table in tables]
        self._names = view.names
        sizes = [P.get(name, 0) if isinstance(P, Mapping) else P for name in self._names]
        if mix:
            tables, images, sizes = [np.concatenate(tables)], [sum(images)], sizes[:1]
            self._names = ["+".join(self._names)]
        for name, table, p in zip(self._names, tables, sizes, strict=True):
            if not len(table):
                raise DataError(f"dataset {name}: no image has a pid; a labelled stage needs identities. "
                                "Name labelled datasets as its source, or shard this one with its labels "
                                "(docs/data.md).")
            if not 1 <= p <= len(table):
                raise DataError(f"dataset {name}: {len(table)} identities, but P is {p}; wanted 1 to {len(table)}. "
                                f"Set a smaller P, for this dataset alone if need be (P: {{{name}: {len(table)}, …}}).")
        self._weights = [weights[name] if weights and not mix else count
                         for name, count in zip(self._names, images, strict=True)]
        self._tables, self._P = tables, sizes
        self.batch = max(sizes) * K
        self.images = sum(images)
        self._shards = [np.unique(view.shards(table[:, 0]), return_inverse=True)[1] for table in tables if window]
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def plan(self, step: int) -> np.ndarray:
        """Rows of the global batch: `(P·K,)` int64, the K images of an identity side by side."""
        dataset, number = turn(step, self._weights)
        table, p = self._tables[dataset], self._P[dataset]
        which, position = divmod(number, len(table) // p)
        chosen = table[self._permutation(dataset, which)[position * p:(position + 1) * p]]
        return self._pick(chosen, step)

    def _permutation(self, dataset: int, which: int) -> np.ndarray:
        """The identities of a pass in their order. The n mod P left out go round: others in each pass, all as often."""
        held = self._passes.get((dataset, which))
        if held is None:
            purpose = *self._key, "identities", self._names[dataset]
            n = len(self._tables[dataset])
            left_out = n % self._P[dataset]
            going_round = generator(*purpose).permutation(n)
            taken = going_round[(which * left_out + np.arange(left_out, n)) % n]
            held = self._ordered(taken, dataset, generator(*purpose, which))
            # Who reads ahead may be in the next pass already.
            near = {key: order for key, order in self._passes.items() if key[0] != dataset or abs(key[1] - which) == 1}
            self._passes = near | {(dataset, which): held}
        return held

    def _ordered(self, taken: np.ndarray, dataset: int, draw: np.random.Generator) -> np.ndarray:
        if not self._window or not self.view.side_by_side(dataset):
            return draw.permutation(taken)
        shard = self._shards[dataset][taken]
        count = int(self._shards[dataset].max()) + 1
        place = draw.permutation(count)[shard] + draw.random(len(taken)) * min(self._window, count)
        return taken[np.argsort(place % count)]

    def _pick(self, chosen: np.ndarray, step: int) -> np.ndarray:
        """K rows of each identity, its cameras in turn: first one image of each camera, then a second of each, …"""
        rows = np.concatenate([np.arange(first, past) for first, past, _ in chosen.tolist()])
        owner = np.repeat(np.arange(len(chosen)), chosen[:, 1] - chosen[:, 0])
        person = self.view.column("role", rows) == PERSON
        rows, owner, count = rows[person], owner[person], chosen[:, 2]
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


class ShuffledSampler:
    """Plain shuffled images, for stages that use no labels.

    A pass over the data is ⌊n/B⌋ batches in an order that depends on the images' content, not on their labels nor on
    how they were sharded: with every pid nulled the batches stay the same. So there is no window of shards here. A
    dataset is sharded in the order of its identities, and images of shards that are read together would be of the same
    people more often than chance has it: the target's labels would reach what must not know them.

    Raises:
        DataError: Fewer images than a batch.
    """

    def __init__(self, view: View, *, batch: int, seed: int, stage: str):
        if not 1 <= batch <= len(view):
            raise DataError(f"datasets {', '.join(view.names)}: {len(view)} images, but the global batch is {batch}; "
                            f"wanted 1 to {len(view)}. Set a smaller batch.")
        self.view, self.batch, self.images, self._key = view, batch, len(view), (seed, stage)
        self._content = view.fingerprints()
        self._passes: dict[int, np.ndarray] = {}

    def plan(self, step: int) -> np.ndarray:
        """Rows of the global batch, `(B,)` int64."""
        which, position = divmod(step, len(self.view) // self.batch)
        held = self._passes.get(which)
        if held is None:
            salt = generator(*self._key, "images", which).integers(2**64, dtype=np.uint64)
            held = np.argsort(scatter(self._content ^ salt), kind="stable")
            near = {key: order for key, order in self._passes.items() if abs(key - which) == 1}
            self._passes = near | {which: held}
        return held[position * self.batch:(position + 1) * self.batch]


class SequentialSampler:
    """Given rows of a view once, in order: for extraction. The last batch may be smaller.

    Args:
        view: What to read.
        batch: Images at a time.
        rows: `(N,)`, the rows.
    """

    def __init__(self, view: View, *, batch: int, rows: np.ndarray):
        self.view, self.batch, self._rows = view, batch, rows

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self.batch)

    def plan(self, step: int) -> np.ndarray:
        """Rows of the batch, `(B,)` int64, fewer in the last one."""
        return self._rows[step * self.batch:(step + 1) * self.batch]


def by_content(view: View) -> np.ndarray:
    """Every row of a view, `(N,)`, in an order that depends on the images alone, not on labels or sharding."""
    return np.argsort(scatter(view.fingerprints()), kind="stable")
