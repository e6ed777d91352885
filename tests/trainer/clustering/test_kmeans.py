"""k-means and PUL's selection: against loops, and the same every time."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers.people_features import people

from embae.trainer.clustering.kmeans import kmeans, near_centres


def test_kmeans_ends_where_nothing_moves() -> None:
    x = people(0, 200)
    labels, centres = kmeans(x, 7, seed=0)
    assert labels.dtype == np.int64 and labels.shape == (200,)
    assert centres.dtype == np.float32 and centres.shape == (7, 6)
    distance = ((x[:, None].astype(np.float64) - centres[None]) ** 2).sum(2)
    assert np.array_equal(distance.argmin(1), labels)
    for k in range(7):
        np.testing.assert_allclose(x[labels == k].mean(0), centres[k], atol=1e-5)


def test_kmeans_finds_people() -> None:
    person = np.repeat(np.arange(9), 11)
    x = (10 * np.eye(9, 12)[person] + np.random.default_rng(0).standard_normal((99, 12)) / 10).astype(np.float32)
    given = x.copy()
    labels, _ = kmeans(x, 9, seed=3)
    assert len(set(zip(labels.tolist(), person.tolist(), strict=True))) == 9 == len(set(labels.tolist()))
    assert np.array_equal(x, given)


def test_the_seed_is_the_only_source_of_chance() -> None:
    x = people(1, 300)
    state = pickle.dumps(np.random.get_state())
    first, again, other = kmeans(x, 12, seed=5), kmeans(x.copy(), 12, seed=5), kmeans(x, 12, seed=2**40)
    assert pickle.dumps(np.random.get_state()) == state
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


HASH = """
import hashlib, numpy as np
from embae.trainer.clustering.kmeans import kmeans
labels, centres = kmeans(np.random.default_rng(0).standard_normal((3000, 50), dtype=np.float32), 40, seed=0)
print(hashlib.sha256(labels.tobytes() + centres.tobytes()).hexdigest())
"""


def test_threads_do_not_change_kmeans() -> None:
    started = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        started.append(subprocess.Popen([sys.executable, "-c", HASH], env=environment, stdout=subprocess.PIPE))
    one, two = (process.communicate()[0] for process in started)
    assert len(one) == 65 and one == two


def test_kmeans_at_its_edges() -> None:
    x = people(2, 10)
    labels, centres = kmeans(x, 1, seed=0)
    assert not labels.any()
    np.testing.assert_allclose(centres[0], x.mean(0), atol=1e-6)
    assert sorted(kmeans(x, 10, seed=0)[0].tolist()) == list(range(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels, centres = kmeans(np.ones((9, 4), np.float32), 3, seed=0)
    assert len(set(labels.tolist())) == 1 and centres.shape == (3, 4) and (centres == 1).all()


@pytest.mark.parametrize(
    ("x", "clusters", "message"),
    [
        (people(0, 5), 6, "6 clusters of 5 images"),
        (people(0, 5), 0, "0 clusters of 5 images"),
        (np.zeros(5, np.float32), 1, r"\(N, F\)"),
        (np.zeros((0, 5), np.float32), 1, r"\(N, F\)"),
        (np.full((5, 2), np.nan, np.float32), 2, "NaN"),
    ],
)
def test_kmeans_errors(x: np.ndarray, clusters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(x, clusters, seed=0)


# PUL's selection


def literally(
    features: list[list[float]], labels: list[int], centres: list[list[float]], similarity: float, smallest: int
) -> list[int]:
    """Fan et al. 2017, §3: cluster by cluster, image by image."""
    chosen, number = [-1] * len(features), 0
    for k in range(len(centres)):
        members = [i for i in range(len(features)) if labels[i] == k]
        if not members:
            continue
        centre = features[min(members, key=lambda i: (math.dist(features[i], centres[k]), i))]
        near = []
        for i in members:
            dot = sum(a * b for a, b in zip(features[i], centre, strict=True))
            lengths = math.hypot(*features[i]) * math.hypot(*centre)
            if features[i] == centre or (lengths > 0 and dot / lengths > similarity):
                near.append(i)
        if len(near) >= smallest:
            for i in near:
                chosen[i] = number
            number += 1
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("similarity", [-0.5, 0.5, 0.85, 0.97])
@pytest.mark.parametrize("smallest", [1, 3, 8])
def test_selection_is_the_papers(seed: int, similarity: float, smallest: int) -> None:
    x = people(seed, 80, 6, 8, 0.6)
    if seed == 3:  # duplicates
        x[40:] = x[:40]
    labels, centres = kmeans(x, 9, seed=seed)
    chosen = near_centres(x, labels, centres, similarity=similarity, smallest=smallest)
    assert chosen.dtype == np.int64
    wanted = literally(x.tolist(), labels.tolist(), centres.tolist(), similarity, smallest)
    assert chosen.tolist() == wanted
    if similarity == 0.85 and smallest == 3:
        assert -1 in wanted and max(wanted) > 0


def test_the_centre_is_an_image_and_not_the_mean() -> None:
    # Mean (0, 1.05): the first image is nearest to it, and the third lies at a right angle to that image.
    x = np.array([[0.2, 1], [-0.3, 1.1], [2, -0.4], [-1.9, 2.5]], np.float32)
    chosen = near_centres(x, np.zeros(4, np.int64), x.mean(0, keepdims=True), similarity=0.85)
    assert chosen.tolist() == [0, 0, -1, -1]


def test_the_first_of_equally_near_images_is_the_centre() -> None:
    x = np.array([[1, 1], [-1, 1], [-1, 1], [1, 1]], np.float32)
    centre = np.array([[0, 1]], np.float32)
    assert near_centres(x, np.zeros(4, np.int64), centre, similarity=0.85).tolist() == [0, -1, -1, 0]
    assert near_centres(x[::-1], np.zeros(4, np.int64), centre, similarity=0.85).tolist() == [0, -1, -1, 0]
    assert near_centres(x[1:], np.zeros(3, np.int64), centre, similarity=0.85).tolist() == [0, 0, -1]


def test_length_counts_for_the_centre_and_not_for_the_selection() -> None:
    x = np.array([[1, 0], [9, 0], [0, 3]], np.float32)
    assert near_centres(x, np.zeros(3, np.int64), x[:1], similarity=0.85).tolist() == [0, 0, -1]
    assert near_centres(x, np.zeros(3, np.int64), x[2:], similarity=0.85).tolist() == [-1, -1, 0]


def test_labels_are_numbered_without_gaps() -> None:
    x = np.array([[1, 0], [0, 1], [1, 0], [-1, 0], [0, 1]], np.float32)
    labels, centres = np.array([6, 2, 6, 4, 2]), np.zeros((8, 2), np.float32)
    assert near_centres(x, labels, centres, similarity=0.85).tolist() == [2, 0, 2, 1, 0]
    assert near_centres(x, labels, centres, similarity=0.85, smallest=2).tolist() == [1, 0, 1, -1, 0]
    assert near_centres(x, labels, centres, similarity=0.85, smallest=3).tolist() == [-1] * 5


def test_identical_images_and_zeros_stay() -> None:
    for value in (0.0, 0.3):
        x = np.full((6, 3), value, np.float32)
        labels, centres = kmeans(x, 2, seed=0)
        chosen = near_centres(x, labels, centres, similarity=0.85)
        # A zero vector has no direction: only the image at the centre is near it.
        assert chosen.tolist() == ([0] * 6 if value else [0] + [-1] * 5)


@pytest.mark.parametrize(
    ("x", "labels", "centres", "message"),
    [
        (people(0, 5), np.zeros(4, np.int64), np.zeros((2, 6)), "do not fit"),
        (people(0, 5), np.zeros(5, np.int64), np.zeros((2, 5)), "do not fit"),
        (people(0, 5), np.zeros(5), np.zeros((2, 6)), "integers from 0 to 1"),
        (people(0, 5), np.full(5, 2), np.zeros((2, 6)), "integers from 0 to 1"),
        (people(0, 5), np.full(5, -1), np.zeros((2, 6)), "integers from 0 to 1"),
    ],
)
def test_selection_errors(x: np.ndarray, labels: np.ndarray, centres: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        near_centres(x, labels, centres, similarity=0.85)
