"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from embae.trainer.recipe.optimizer import Schedule


def steps(epochs: float, images: int, batch: int) -> int:
    """Steps in that many epochs; an epoch is images / global batch steps (arXiv 1807.10591 §3.3)."""
    return max(1, round(epochs * images / batch))


def learning_rate(schedule: Schedule, base: float, epoch: float) -> float:
    """Learning rate at a time in epochs (not whole ones: it changes every step).

    Linear warm-up from 0, constant, then exponential decay (Hermans et al. 2017) or a cosine from `base` to
    `schedule.final`.
    """
    if epoch < schedule.warmup:
        return base * epoch / schedule.warmup
    falling = schedule.decay or schedule.cosine
    past = epoch - schedule.warmup - schedule.constant
    if not falling or past <= 0:
        return base
    done = min(past / falling, 1.0)
    if schedule.decay:
        return float(base * (schedule.final / base) ** done)
    return schedule.final + (base - schedule.final) * (1 + math.cos(math.pi * done)) / 2
