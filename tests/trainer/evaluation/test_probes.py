"""Probes on codes of which it is known what they hold."""

from __future__ import annotations

import time

import numpy as np
import pytest

from embae.trainer.evaluation.probes import Probe, classify, error_by_camera, linear_probe, moved


def drawn(images: int, classes: int, seed: int = 0) -> tuple[np.random.Generator, np.ndarray]:
    """A generator and labels `(images,)`."""
    rng = np.random.default_rng(seed)
    return rng, rng.integers(classes, size=images)


def test_what_is_there_is_found() -> None:
    rng, y = drawn(600, 5)
    x = rng.standard_normal((5, 16))[y] + 0.1 * rng.standard_normal((600, 16))
    assert linear_probe(x, y, seed=0) == Probe(1.0, 1 / 5)
    assert linear_probe(x, y, seed=0, group=rng.integers(50, size=600)) == Probe(1.0, 1 / 5)


def test_noise_is_reported_by_chance() -> None:
    rng, y = drawn(4000, 4)
    x = rng.standard_normal((4000, 32))
    for group in (None, rng.integers(100, size=4000)):
        assert linear_probe(x, y, seed=0, group=group).accuracy == pytest.approx(0.25, abs=0.03)


def test_a_large_class_counts_no_more_than_a_small_one() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], [3800, 200])
    # Always guessing the large class would tell 95 % of the images right.
    assert linear_probe(rng.standard_normal((4000, 8)), y, seed=0).accuracy == pytest.approx(0.5, abs=0.08)
    # And the small class is found where it differs by half a deviation in every dimension: d' = 0.5·√8, so 76 %.
    x = rng.standard_normal((4000, 8)) + 0.5 * y[:, None]
    assert linear_probe(x, y, seed=0).accuracy == pytest.approx(0.76, abs=0.05)


def test_people_are_not_remembered() -> None:
    # Everybody was seen by one camera only, and the codes hold people and nothing of cameras.
    rng, person = drawn(4000, 200, 2)
    camera = rng.integers(4, size=200)[person]
    x = rng.standard_normal((200, 128))[person] + 0.1 * rng.standard_normal((4000, 128))
    assert linear_probe(x, camera, seed=0).accuracy > 0.8
    assert linear_probe(x, camera, seed=0, group=person).accuracy == pytest.approx(0.25, abs=0.12)
    x[:, :4] += 12 * np.eye(4)[camera]  # once the camera is in there, new people's cameras are told too
    assert linear_probe(x, camera, seed=0, group=person).accuracy > 0.8


def test_a_group_stays_whole() -> None:
    # A label that is the group itself is in one half only: nothing to ask.
    _, person = drawn(500, 20, 3)
    found = linear_probe(np.eye(20)[person], person, seed=0, group=person)
    assert np.isnan([found.accuracy, found.chance]).all()


def test_classes_of_one_half_are_left_out() -> None:
    # Class 2 is one group: it can be trained or tested, never both.
    y = np.array([0, 1] * 40 + [2] * 40)
    group = np.array([number // 4 for number in range(80)] + [99] * 40)
    assert linear_probe(np.eye(3)[y], y, seed=0, group=group) == Probe(1.0, 1 / 2)
    # And one image cannot be in both halves.
    assert linear_probe(np.eye(3)[[0, 0, 1, 1, 2]], np.array([0, 0, 1, 1, 2]), seed=0) == Probe(1.0, 1 / 2)


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1, 1], [1, 1, 2]])
def test_too_little_to_ask(labels: list[int]) -> None:
    for group in (None, np.arange(len(labels))):
        found = linear_probe(np.ones((len(labels), 3)), np.array(labels, int), seed=0, group=group)
        assert np.isnan([found.accuracy, found.chance]).all()


@pytest.mark.filterwarnings("error")
def test_constant_codes_tell_nothing() -> None:
    _, y = drawn(300, 3)
    assert linear_probe(np.full((300, 4), 0.1), y, seed=0).accuracy == pytest.approx(1 / 3)


@pytest.mark.filterwarnings("error")
def test_scale_and_place_of_a_dimension_play_no_part() -> None:
    rng, y = drawn(800, 4, 4)
    x = 0.3 * rng.standard_normal((4, 12))[y] + rng.standard_normal((800, 12))
    found = linear_probe(x, y, seed=0)
    assert 0.3 < found.accuracy < 0.9
    assert linear_probe(x * np.logspace(-6, 6, 12) + np.arange(12), y, seed=0) == found
    dead = np.column_stack([x, np.zeros(800), np.full(800, 1e6)])  # only the ridge sees that there are more
    assert linear_probe(dead, y, seed=0).accuracy == pytest.approx(found.accuracy, abs=0.01)
    assert linear_probe(x, np.array(["b", "a", "d", "c"])[y], seed=0) == found  # names of classes neither


def test_halves_are_drawn_from_the_seed() -> None:
    rng, y = drawn(300, 4, 5)
    x = 0.5 * rng.standard_normal((4, 8))[y] + rng.standard_normal((300, 8))
    group = rng.integers(40, size=300)
    for given in (None, group):
        found = [linear_probe(x, y, seed=seed, group=given).accuracy for seed in (0, 0, 1, 2)]
        assert found[0] == found[1] and len(set(found)) > 1


def test_it_is_the_regression_it_says() -> None:
    rng, y = drawn(90, 3, 6)
    x = rng.standard_normal((3, 5))[y] + rng.standard_normal((90, 5))
    mean, deviation, count = x.mean(0), x.std(0), np.bincount(y)
    weight = np.sqrt(1 / (3 * count))[y]
    design = np.column_stack([(x - mean) / deviation, np.ones(90)])
    penalty = np.sqrt(0.2) * np.eye(6)[:5]  # the intercept goes free
    left = np.vstack([design * weight[:, None], penalty])
    right = np.vstack([np.eye(3)[y] * weight[:, None], np.zeros((5, 3))])
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    asked = rng.standard_normal((500, 5))
    expected = (np.column_stack([(asked - mean) / deviation, np.ones(500)]) @ solved).argmax(1)
    np.testing.assert_array_equal(classify(x, y, asked, 0.2), expected)


def test_market_size_is_quick() -> None:
    rng, y = drawn(13_000, 751, 7)
    x = rng.standard_normal((751, 128))[y] + 0.5 * rng.standard_normal((13_000, 128))
    began = time.process_time()
    assert linear_probe(x, y, seed=0).accuracy > 0.95
    assert time.process_time() - began < 5  # about 0.6 s


def test_more_dimensions_than_images() -> None:
    rng, y = drawn(300, 3, 8)
    x = rng.standard_normal((3, 1280))[y] + rng.standard_normal((300, 1280))
    assert linear_probe(x.astype(np.float32), y, seed=0).accuracy > 0.95


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \(3,\)"):
        linear_probe(np.ones((4, 2)), np.ones(3), seed=0)
    with pytest.raises(ValueError, match=r"groups \(3,\)"):
        linear_probe(np.ones((4, 2)), np.ones(4), seed=0, group=np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(np.array([[0.0], [np.nan]]), np.ones(2), seed=0)
    with pytest.raises(ValueError, match=r"\(2, 3\) before and \(2, 4\) after"):
        moved(np.ones((2, 3)), np.ones((2, 4)))


def test_error_by_camera() -> None:
    found = error_by_camera(np.array([1.0, 2, 3, 10]), np.array([6, 2, 6, 1]))
    assert list(found.items()) == [(1, 10.0), (2, 2.0), (6, 2.0)]
    assert error_by_camera(np.array([]), np.array([], int)) == {}


@pytest.mark.filterwarnings("error")
def test_moved() -> None:
    before = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    after = before + np.array([[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]])
    assert moved(before, after) == pytest.approx((1 / 5 + 1) / 2)  # the code without length is in no mean
    assert moved(7 * before, 7 * after) == pytest.approx(moved(before, after))
    assert moved(before, before) == 0
    assert np.isnan(moved(np.zeros((2, 3)), np.ones((2, 3))))
