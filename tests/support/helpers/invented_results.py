"""Invented results of recipes, for what sums them up and shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embae.trainer.comparison.results import Comparison, Result


def result(
    recipe: str, row: str, seed: int, rank1: float, mAP: float, start: str | None = None, **other: Any
) -> Result:
    """A result with every score that an evaluation has; `other` are attributes of `Result`."""
    scores = {
        **{"Rank-1": rank1, "Rank-5": rank1 + 0.2, "mAP": mAP, "mINP": mAP / 3},
        **{"Rank-1-nd": rank1 + 0.05, "mAP-nd": mAP + 0.04, "queries": 7, "unmatched": 1},
        "interval": {"Rank-1": [rank1 - 0.03, rank1 + 0.02], "mAP": [mAP - 0.02, mAP + 0.01]},
    }
    costs = {"seconds": 100.0 + seed, "adaptation": 0.0 if start is None else 10.0 + seed, "images": 1000}
    return Result(recipe, row, seed, start, **{"trained": True, "scores": scores, **costs, **other})


def family(seeds: Sequence[int] = (0, 1, 2)) -> list[Result]:
    """A baseline that three recipes share, two adaptations and a control, on some seeds."""
    results = []
    for seed in seeds:
        base = 0.40 + 0.01 * seed
        probes = {"camera from z": 0.5 + 0.1 * seed, "chance of camera": 0.25, "moved": 0.3}
        probes["identity from v"] = float("nan")  # could not be taken
        results += [
            result("embae-fix", "Baseline", seed, base, 0.2 + 0.01 * seed),
            result("embae-fix", "EmbAE-fix", seed, base + 0.02, 0.2 + 0.01 * seed + 0.01 * (seed - 1), "Baseline"),
            result("embae-cam", "Baseline", seed, base, 0.2 + 0.01 * seed),
            result("embae-cam", "EmbAE-cam", seed, base + 0.03 + 0.001 * seed, 0.24 + 0.01 * seed, "Baseline",
                   probes=probes),
            result("bn-camera", "Baseline", seed, base, 0.2 + 0.01 * seed),
            result("bn-camera", "BN per camera", seed, base + 0.025, 0.23 + 0.01 * seed, "Baseline", trained=False),
        ]
    return results


def comparison(seeds: Sequence[int] = (0, 1, 2), dataset: str = "market1501", tta: str = "ten-crop",
               rerank: bool = False) -> Comparison:
    return Comparison(dataset, ("dukemtmc",), tta, tuple(family(seeds)), rerank)
