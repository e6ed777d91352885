"""Measures why adaptation works: what a linear classifier reads out of z and v, and how far z moved.

The claim of arXiv 1807.10591 is that adaptation moves what belongs to a camera out of the embedding z into the nuisance
v. If so, the camera becomes harder to tell from z, stays easy to tell from v, and the person stays out of v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embae.datasets.sampling.keyed_random import generator


@dataclass(frozen=True)
class Probe:
    """Accuracy of a linear classifier on images that it has not seen; NaN if it cannot be measured.

    Attributes:
        accuracy: Mean over classes of the share of images predicted right, so that large classes count no more.
        chance: What guessing gets, 1 / classes.
    """

    accuracy: float
    chance: float


def linear_probe(x: np.ndarray, y: np.ndarray, *, seed: int, group: np.ndarray | None = None) -> Probe:
    """Trains a linear classifier on one half of the images and tests it on the other.

    Ridge regression with an intercept from standardised x to one-hot targets, every class weighing the same, in closed
    form. The ridge is as strong as D images of pure noise beside those that are trained on, of which a group counts as
    one, since its images are alike. Such a classifier hides classes between others where these are many more than
    dimensions, so compare codes of one width.

    Args:
        x: Codes, `(N, D)`.
        y: What to predict from them, `(N,)`: integers or strings.
        seed: Of the halves; the same for the same images in the same order.
        group: `(N,)`, all images of a group fall into one half: identities, so that a probe for cameras cannot remember
            which person was where. None halves each class: needed where y itself is the identity. Neighbouring frames
            then fall into both halves, so such a probe says the most that can be read.

    Returns:
        The accuracy over the classes that occur in both halves; NaN if these are fewer than two.

    Raises:
        ValueError: Lengths differ, or x is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y)
    one = np.arange(len(y)) if group is None else np.asarray(group)
    if x.ndim != 2 or y.shape != x.shape[:1] or one.shape != y.shape:
        raise ValueError(f"codes {x.shape}, labels {y.shape}, groups {one.shape}: expected (N, D), (N,), (N,)")
    if not np.isfinite(x).all():
        raise ValueError("codes to probe are not finite")
    rng = generator(seed, "probe")
    half = _deal(rng, y) if group is None else _pair(rng, one)
    classes = np.intersect1d(y[half], y[~half])
    if len(classes) < 2:
        return Probe(float("nan"), float("nan"))
    in_classes = np.isin(y, classes)
    label = np.searchsorted(classes, y)
    trained, tested = half & in_classes, ~half & in_classes
    predicted = classify(x[trained], label[trained], x[tested], x.shape[1] / len(np.unique(one[trained])))
    right = np.bincount(label[tested], weights=predicted == label[tested]) / np.bincount(label[tested])
    return Probe(float(right.mean()), 1 / len(classes))


def error_by_camera(error: np.ndarray, camera: np.ndarray) -> dict[int, float]:
    """Means of the images' errors `(N,)` by camera `(N,)`, cameras in ascending order."""
    cameras, number = np.unique(camera, return_inverse=True)
    means = np.bincount(number, weights=error) / np.bincount(number)
    return dict(zip(map(int, cameras), map(float, means), strict=True))


def moved(before: np.ndarray, after: np.ndarray) -> float:
    """How far codes `(N, Z)` moved, as a share of their length: the mean over images of ‖after − before‖ / ‖before‖.

    Images whose code had no length are left out; NaN if none is left.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"codes {before.shape} before and {after.shape} after: expected the same images and width")
    length = np.linalg.norm(before, axis=1)
    nonzero = length > 0
    return (
        float(np.mean(np.linalg.norm(after - before, axis=1)[nonzero] / length[nonzero]))
        if nonzero.any()
        else float("nan")
    )


def _deal(rng: np.random.Generator, y: np.ndarray) -> np.ndarray:
    """`(N,)` bool: of each class, shuffled, every other image from the first on."""
    _, label, count = np.unique(y, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.permutation(len(y)), label))
    within = np.arange(len(y)) - np.repeat(np.cumsum(count) - count, count)
    half = np.empty(len(y), bool)
    half[order] = within % 2 == 0
    return half


def _pair(rng: np.random.Generator, group: np.ndarray) -> np.ndarray:
    """`(N,)` bool: of every two groups of about the same size one, so that the halves are of about the same size."""
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.permutation(len(count)), count))
    coins = rng.integers(2, size=(len(count) + 1) // 2)
    chosen = np.empty(len(count), bool)
    chosen[order] = (np.arange(len(count)) + np.repeat(coins, 2)[:len(count)]) % 2 == 0
    return chosen[number]


def classify(x: np.ndarray, label: np.ndarray, tested: np.ndarray, ridge: float) -> np.ndarray:
    """The classes of codes `(M, D)` that the regression on codes `(N, D)` and their labels, 0 … C−1, finds: `(M,)`."""
    mean, deviation = x.mean(0), x.std(0)
    # A dimension that never moves says nothing, and rounding in it must not be blown up.
    still = deviation <= 1e-9 * np.abs(x).max(0)
    scale = np.where(still, 0, 1 / np.where(still, 1, deviation))
    x, tested = (x - mean) * scale, (tested - mean) * scale
    count = np.bincount(label)
    order = np.argsort(label, kind="stable")
    means = np.add.reduceat(x[order], np.cumsum(count) - count) / count[:, None]
    # With weights of 1 / (C·n_c) the intercept goes once x is centred on the mean of the class means, and these are the
    # right side of the normal equations: no one-hot (N, C) is needed.
    centre = means.mean(0)
    x, tested, means = x - centre, tested - centre, means - centre
    weight = (1 / (len(count) * count))[label]
    second = (x * weight[:, None]).T @ x + ridge * np.eye(x.shape[1])
    classes: np.ndarray = (tested @ np.linalg.solve(second, means.T)).argmax(1)
    return classes
