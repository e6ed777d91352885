"""Scores of a ranked gallery: what is known of the images, results of each query, their means and intervals.

How they come about is in `ranking.py`. Names of scores are those people use, and stable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from embae.datasets.index.records import ROLES

_KEYS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mAP": "mAP",
    "mAP_rectangle": "mAP (rectangle)",
    "mINP": "mINP",
    "rank1_nd": "Rank-1-nd",
    "mAP_nd": "mAP-nd",
    "mAP_nd_rectangle": "mAP-nd (rectangle)",
}


@dataclass(frozen=True)
class Labels:
    """What the metric knows about N images; made by `Labels.of`.

    Attributes:
        pid: `(N,)` int64, meaningless where `identified` is false.
        camid: `(N,)` int64.
        identified: `(N,)` bool, a person whose identity is known: the only images that can match.
        junk: `(N,)` bool.
    """

    pid: np.ndarray
    camid: np.ndarray
    identified: np.ndarray
    junk: np.ndarray

    @classmethod
    def of(cls, pid: Iterable[int | None], camid: Iterable[int], role: Iterable[str] | None = None) -> Labels:
        """Labels from the columns of an index.

        Args:
            pid: `(N,)`, None where not known: such an image matches nothing.
            camid: `(N,)`.
            role: `(N,)` of `person`, `distractor`, `junk`; None if all are persons.

        Raises:
            ValueError: Lengths differ, a pid or camid is no integer, or a role is none of the three.
        """
        pid = list(pid)
        labelled = np.array([number is not None for number in pid], dtype=bool)
        pids = _integers([0 if number is None else number for number in pid], "pid")
        camids = _integers(list(camid), "camid")
        roles = np.array(["person"] * len(pids) if role is None else list(role), dtype=np.str_)
        if not len(pids) == len(camids) == len(roles):
            raise ValueError(f"{len(pids)} pids, {len(camids)} camids and {len(roles)} roles: one of each per image")
        if unknown := set(roles.tolist()) - set(ROLES):
            raise ValueError(f"unknown role {min(unknown)!r}; roles are {', '.join(ROLES)}")
        return cls(pids, camids, labelled & (roles == "person"), roles == "junk")

    def __len__(self) -> int:
        return len(self.pid)


@dataclass(frozen=True)
class Scores:
    """Means over the queries that have a positive, each between 0 and 1, and how many queries there were.

    Attributes:
        queries: All queries, those without a positive included.
        unmatched: Queries without a positive; in no mean.
    """

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mAP_rectangle: float
    mINP: float
    rank1_nd: float
    mAP_nd: float
    mAP_nd_rectangle: float
    queries: int
    unmatched: int

    def to_dict(self) -> dict[str, float | int]:
        """The scores under the names people use, for JSON; stable.

        Keys: `Rank-1`, `Rank-5`, `Rank-10`, `mAP` (trapezoid), `mAP (rectangle)`, `mINP`, `Rank-1-nd`, `mAP-nd`
        (trapezoid), `mAP-nd (rectangle)`, `queries`, `unmatched`.
        """
        return {_KEYS.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class PerQuery:
    """Results of each query; parts from several ranks go together with `concatenate`.

    Attributes:
        first, first_nd: `(Q,)` int64, the rank r_1 of the first positive from 1; 0 for a query without positives.
        ap, ap_rectangle, inp, ap_nd, ap_nd_rectangle: `(Q,)` float64, NaN for a query without positives.
    """

    first: np.ndarray
    ap: np.ndarray
    ap_rectangle: np.ndarray
    inp: np.ndarray
    first_nd: np.ndarray
    ap_nd: np.ndarray
    ap_nd_rectangle: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence[PerQuery]) -> PerQuery:
        """The queries of `parts`, in that order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def values(self) -> dict[str, np.ndarray]:
        """`(Q,)` float64 under every score key of `Scores.to_dict`, NaN without positives; for `interval`."""

        def hit(first: np.ndarray, k: int) -> np.ndarray:
            return np.where(first > 0, first <= k, np.nan)

        columns = [
            *(hit(self.first, 1), hit(self.first, 5), hit(self.first, 10), self.ap, self.ap_rectangle, self.inp),
            *(hit(self.first_nd, 1), self.ap_nd, self.ap_nd_rectangle),
        ]
        return dict(zip(_KEYS.values(), columns, strict=True))

    def scores(self) -> Scores:
        """The means.

        Raises:
            ValueError: No query has a positive, so there is no mean.
        """
        matched = self.first > 0
        if not matched.any():
            raise ValueError(
                f"none of {len(matched)} queries has an image of its identity on another camera of the gallery; "
                "are query and gallery of one dataset, and are their pids and camids known?"
            )
        means = {key: float(value[matched].mean()) for key, value in self.values().items()}
        named = {name: means[key] for name, key in _KEYS.items()}
        return Scores(**named, queries=len(matched), unmatched=int(np.count_nonzero(~matched)))


def interval(values: np.ndarray, query_labels: Labels, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, by bootstrap over identities.

    Queries of one identity are not independent: identities are drawn with replacement, each with all of its queries.

    Args:
        values: `(Q,)` of `PerQuery.values`; NaN (a query without positives) is left out.
        query_labels: Q labels.
        seed: Of the draws.
        resamples: Number of draws.

    Raises:
        ValueError: Lengths differ, or every value is NaN.
    """
    if len(values) != len(query_labels):
        raise ValueError(f"{len(values)} values for {len(query_labels)} queries")
    has_positives = ~np.isnan(values)
    if not has_positives.any():
        raise ValueError("no query has a positive: nothing to resample")
    _, person = np.unique(query_labels.pid[has_positives], return_inverse=True)
    total, count = np.bincount(person, weights=values[has_positives]), np.bincount(person)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(count), size=len(count)) for _ in range(resamples))
    low, high = np.percentile([total[draw].sum() / count[draw].sum() for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def _integers(values: list[int], name: str) -> np.ndarray:
    """`(N,)` int64."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} must be one integer per image, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)
