"""Learning rate and number of steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from embae.trainer.recipe.optimizer import Schedule
from embae.trainer.training.schedule import learning_rate, steps

PAPER = Schedule(constant=100, decay=300, final=3e-7)


@pytest.mark.parametrize(
    "epoch, wanted",
    [
        (0, 3e-4),
        (50, 3e-4),
        (100, 3e-4),
        (100.001, 3e-4 * 1e-3 ** (0.001 / 300)),
        (200, 3e-5),
        (250, 3e-4 * 10**-1.5),
        (300, 3e-6),
        (399.999, 3e-7 * 1e3 ** (0.001 / 300)),
        (400, 3e-7),
        (1000, 3e-7),
    ],
)
def test_the_papers_schedule(epoch: float, wanted: float) -> None:
    assert learning_rate(PAPER, 3e-4, epoch) == pytest.approx(wanted, rel=1e-12)


def test_exponential_decay_falls_by_the_same_factor_every_epoch() -> None:
    rates = [learning_rate(PAPER, 3e-4, epoch) for epoch in range(100, 401)]
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([1e-3 ** (1 / 300)] * 300)


def test_warm_up_is_linear_from_zero() -> None:
    schedule = Schedule(warmup=4, constant=2)
    assert [learning_rate(schedule, 0.8, epoch) for epoch in (0, 1, 2, 4, 5, 9)] == pytest.approx(
        [0, 0.2, 0.4, 0.8, 0.8, 0.8]
    )


def test_cosine() -> None:
    schedule = Schedule(warmup=1, constant=1, cosine=4, final=0.1)
    found = [learning_rate(schedule, 1.1, epoch) for epoch in (1, 2, 3, 4, 5, 6, 7)]
    wanted = [1.1, 1.1, 0.1 + (1 + math.sqrt(0.5)) / 2, 0.6, 0.1 + (1 - math.sqrt(0.5)) / 2, 0.1, 0.1]
    assert found == pytest.approx(wanted)
    assert learning_rate(Schedule(cosine=2), 1.0, 2) == 0


def test_constant_where_only_a_length_is_given() -> None:
    assert learning_rate(Schedule(constant=3), 0.5, 2.9) == 0.5


@pytest.mark.parametrize(
    "epochs, images, batch, wanted",
    [
        (1, 100, 10, 10),
        (1, 104, 10, 10),
        (1, 106, 10, 11),
        (0.5, 100, 10, 5),
        (0.001, 100, 10, 1),
        (400, 16522, 72, 91789),
    ],
)
def test_steps(epochs: float, images: int, batch: int, wanted: int) -> None:
    assert steps(epochs, images, batch) == wanted
