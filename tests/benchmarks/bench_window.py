"""What a window of shards does to the mixing of identities, and to what has to be fetched.

    python tests/benchmarks/bench_window.py [--shards 160] [--identities 40] [--passes 6]

The plan of a `PKSampler` (P=18) over an invented view: no image is read, and bytes count in shards. A line a window:
shards that a batch touches and that 100 steps touch (means); how often two identities that met in a batch meet again in
the next pass, in units of full shuffling (mean over `--passes`); shards fetched a pass, in units of the dataset, by a
node that reads whole batches through a cache of a tenth of the shards, least recently read first out.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler

P = 18


class Identities(PKSampler):
    """The plan alone: identities instead of rows."""

    def pick_images(self, identities: np.ndarray, step: int) -> np.ndarray:
        return identities[:, 0]


def sampler(shards: int, identities: int, window: int | None) -> Identities:
    """One image an identity, so that a row is an identity."""
    row = np.arange(shards * identities)
    view = SimpleNamespace(identities=[np.stack([row, row + 1, np.ones_like(row)], 1)], names=["one"],
                           shards=lambda rows: rows // identities)
    return Identities(view, PKOptions(P=P, K=1, window=window), seed=0, stage="bench")  # type: ignore[arg-type]


def meetings(batches: np.ndarray) -> np.ndarray:
    """Every pair of one batch as a number, sorted."""
    first, second = np.triu_indices(P, 1)
    ordered = np.sort(batches, 1)
    return np.sort((ordered[:, first] << 32 | ordered[:, second]).reshape(-1))


def fetched(shards: np.ndarray, room: int) -> int:
    """Shards that a cache of so many lacks."""
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for batch in shards:
        for shard in np.unique(batch).tolist():
            misses += shard not in held
            held[shard] = None
            held.move_to_end(shard)
            if len(held) > room:
                held.popitem(last=False)
    return misses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=160)
    parser.add_argument("--identities", type=int, default=40, help="a shard")
    parser.add_argument("--passes", type=int, default=6)
    given = parser.parse_args()
    count = given.shards * given.identities
    steps = count // P
    chance = (P - 1) / (count - 1)
    print(f"{count:,} identities in {given.shards} shards, passes of {steps} steps")
    print(f"{'window':>7} {'a batch':>8} {'100 steps':>10} {'meet again':>11} {'fetched a pass':>15}")
    for window in (1, 4, 16, None):
        plan = sampler(given.shards, given.identities, window)
        batches = np.stack([plan.plan(step) for step in range(given.passes * steps)])
        shards = batches // given.identities
        pairs = [meetings(batches[at * steps:(at + 1) * steps]) for at in range(given.passes)]
        again = np.mean([np.isin(b, a).mean() for a, b in pairwise(pairs)]) / chance
        span = [len(np.unique(shards[at:at + 100])) for at in range(0, len(shards) - 100, 50)]
        misses = fetched(shards, given.shards // 10) / given.passes / given.shards
        print(f"{window or 'all':>7} {np.mean([len(np.unique(batch)) for batch in shards]):8.1f} {np.mean(span):10.1f} "
              f"{again:11.2f} {misses:15.2f}")


if __name__ == "__main__":
    main()
