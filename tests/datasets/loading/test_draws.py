"""Augmentation as numbers: in bounds, at the rates asked for, a function of the slot."""

from __future__ import annotations

import numpy as np
import pytest

from embae.datasets.loading import draws as module
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.draws import Draws, draw
from embae.datasets.loading.image_spec import ImageSpec

SPEC = ImageSpec(256, 128)
ALL = Augment(flip=True, crop=True, pad=10, erase=0.5, brightness=0.2, contrast=0.3, saturation=0.4, hue=18)
FIELDS = ("flip", "anchor", "erase", "colour")


def drawn(augment: Augment, slots: int = 20_000, **other: object) -> Draws:
    return draw(augment, SPEC, slots, **{"seed": 0, "stage": "s", "step": 4, **other})  # type: ignore[arg-type]


def test_sizes() -> None:
    assert (SPEC.margin, SPEC.fill) == ((288, 144), [124, 116, 104])
    assert Augment(crop=True).read_size(SPEC) == (288, 144)
    assert Augment(flip=True, pad=10).read_size(SPEC) == (256, 128)
    assert Augment(flip=True).at_most_flip and not Augment(pad=1).at_most_flip and not Augment(hue=1).at_most_flip


@pytest.mark.parametrize("other", [{"seed": 1}, {"stage": "t"}, {"step": 5}])
def test_draws_are_a_function_of_seed_stage_step(other: dict[str, object]) -> None:
    for name in FIELDS:
        assert (getattr(drawn(ALL), name) == getattr(drawn(ALL), name)).all()
        assert (getattr(drawn(ALL), name) != getattr(drawn(ALL, **other), name)).any()


def test_a_slot_does_not_depend_on_how_many_there_are() -> None:
    few, many = drawn(ALL, 10), drawn(ALL, 72)
    for name in FIELDS:
        assert (getattr(few, name) == getattr(many.take(slice(0, 10)), name)).all()


@pytest.mark.parametrize("only, field", [("flip", "flip"), ("crop", "anchor"), ("erase", "erase"), ("hue", "colour")])
def test_kinds_do_not_disturb_each_other(only: str, field: str) -> None:
    everything = ALL.model_copy(update={"pad": 0, "brightness": 0, "contrast": 0, "saturation": 0})
    alone = Augment(**{only: getattr(ALL, only)})
    assert (getattr(drawn(everything), field) == getattr(drawn(alone), field)).all()


def test_nothing_happens_unasked() -> None:
    found = drawn(Augment())
    assert not found.flip.any() and not found.anchor.any() and not found.erase[:, 2:].any()
    assert (found.colour == [1, 1, 1, 0]).all()


def test_half_are_flipped() -> None:
    flip = drawn(Augment(flip=True)).flip
    assert set(flip.tolist()) == {0, 1}
    assert 0.48 < flip.mean() < 0.52


@pytest.mark.parametrize("augment, low, high", [
    (Augment(crop=True), (0, 0), (32, 16)), (Augment(pad=10), (-10, -10), (10, 10)),
    (Augment(crop=True, pad=5), (-5, -5), (37, 21))])
def test_crops_reach_every_place_and_none_beyond(augment: Augment, low: tuple[int, int], high: tuple[int, int]) -> None:
    anchor = drawn(augment).anchor
    for axis in (0, 1):
        places, counts = np.unique(anchor[:, axis], return_counts=True)
        assert places.tolist() == list(range(low[axis], high[axis] + 1))
        assert counts.min() > 0.7 * counts.mean()


def test_crops_stay_inside_at_the_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw next to 1 must not be rounded to it."""
    class Largest:
        def random(self, shape: tuple[int, int]) -> np.ndarray:
            return np.full(shape, np.nextafter(1, 0))

    monkeypatch.setattr(module, "generator", lambda *words: Largest())
    found = drawn(Augment(crop=True, erase=1.0), 1)
    assert found.anchor.tolist() == [[32, 16]]
    top, left, height, width = found.erase[0]
    assert top + height <= 256 and left + width <= 128


def test_erased_rectangles() -> None:
    found = drawn(Augment(erase=0.3)).erase
    hit = found[:, 2] > 0
    assert 0.28 < hit.mean() < 0.32
    assert not found[~hit, 2:].any()
    top, left, height, width = found[hit].T
    share = height * width / (256 * 128)
    assert share.min() > 0.019 and share.max() < 0.405
    assert share.min() < 0.022 and share.max() > 0.38 and 0.17 < share.mean() < 0.21
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 256).all() and (left + width <= 128).all()
    assert (top == 0).any() and (top + height == 256).any() and (left + width == 128).any()
    uncut = (height < 256) & (width < 128)
    aspect = (height / width)[uncut]
    assert aspect.min() > 0.28 and aspect.max() < 3.6
    assert all((column == np.round(column)).all() for column in (top, left, height, width))


def test_colours_are_within_reach() -> None:
    colour = drawn(ALL).colour
    low, high = colour.min(0), colour.max(0)
    np.testing.assert_allclose(low, [0.8, 0.7, 0.6, -18], atol=0.02)
    np.testing.assert_allclose(high, [1.2, 1.3, 1.4, 18], atol=0.02)
    assert abs(np.corrcoef(colour.T) - np.eye(4)).max() < 0.05
