"""Turns of several datasets, in proportion to weights."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def turn(step: int, weights: Sequence[float]) -> tuple[int, int]:
    """Which dataset a step takes its batch from, and how many turns that dataset had before.

    The datasets are divided into two groups of about equal weight, and each group again. Of the first t turns of both
    groups, one with share s has ⌊ts + ½⌋: in proportion, evenly spread, and computed for any step directly. With two or
    three datasets, none is ever more than one turn away from its share; with more, slightly more than one at worst.

    Args:
        step: From 0.
        weights: One per dataset, positive, in any unit.

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
