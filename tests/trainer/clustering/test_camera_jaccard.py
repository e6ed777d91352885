"""Camera-aware Jaccard distances against a literal transcription of Chen et al. 2024."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks

from embae.trainer.clustering.camera_jaccard import camera_aware_distances
from embae.trainer.inference.embeddings import spread_over
from embae.trainer.runtime.distributed import World


def invented(count: int = 90, cameras: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of people, each image moved by its camera, and the cameras."""
    draw = np.random.default_rng(seed)
    who, camera = draw.integers(count // 6, size=count), draw.integers(cameras, size=count)
    people, moved = draw.normal(size=(count, 16)), 1.5 * draw.normal(size=(cameras, 16))
    return (people[who] + moved[camera] + 0.4 * draw.normal(size=(count, 16))).astype(np.float32), camera


def literally(features: np.ndarray, cameras: np.ndarray, own: int, others: int, average: int) -> np.ndarray:
    """With sets and N × N matrices."""
    x = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    s, count = x @ x.T, len(x)
    ranked = [sorted(range(count), key=lambda j: (j != i, -round(s[i, j], 8), j)) for i in range(count)]
    within = [[j for j in ranked[i] if cameras[j] == cameras[i]][:own + 1] for i in range(count)]
    across = [[j for j in ranked[i] if cameras[j] != cameras[i]][:others] for i in range(count)]
    v = np.zeros((count, count))
    for i in range(count):
        close = {j for lists in (within, across) for j in lists[i] if i in lists[j]}
        for j in close:
            v[i, j] = np.exp(2 * s[i, j] - 2) / sum(np.exp(2 * s[i, q] - 2) for q in close)
    mean = []
    for i in range(count):
        there = within[i][:average] + across[i][:average]
        there += [i] * (2 * average - len(there))  # where a camera has so few images, itself
        mean.append(sum(v[j] for j in there) / len(there))
    m = np.array([[np.minimum(a, b).sum() for b in mean] for a in mean])
    return 1 - m / (2 - m)


def dense(found: Any) -> np.ndarray:
    """With what is absent filled in."""
    full, kept = np.ones(found.shape), found.tocoo()
    full[kept.row, kept.col] = kept.data
    return full


@pytest.mark.parametrize(("cameras", "own", "others", "average"), [
    (3, 5, 10, 2), (2, 3, 4, 1), (6, 2, 6, 3), (1, 5, 10, 2), (30, 5, 10, 2)])
def test_equals_the_transcription(cameras: int, own: int, others: int, average: int) -> None:
    features, camera = invented(cameras=cameras)
    found = camera_aware_distances(features, camera, same_camera=own, other_cameras=others, average=average)
    wanted = literally(features, camera, own, others, average)
    assert abs(dense(found) - wanted).max() < 1e-6
    assert (abs(found - found.T).max(), found.diagonal().max()) == (0, 0)
    assert (wanted < 0.99).sum() > 2 * len(features)


def test_cameras_of_one_image_and_of_all_others() -> None:
    features, _ = invented(20)
    for camera in (np.arange(20), np.zeros(20, int), np.array([0] * 19 + [1])):
        found = dense(camera_aware_distances(features, camera))
        assert np.isfinite(found).all() and (np.diag(found) == 0).all()


def test_a_single_image_is_near_itself_alone() -> None:
    assert dense(camera_aware_distances(np.ones((1, 16), np.float32), np.zeros(1, int))).tolist() == [[0]]


def test_does_not_end_at_the_camera() -> None:
    """Where cameras move features far apart, people are still found across them."""
    features, camera = invented()
    found = dense(camera_aware_distances(features, camera))
    other = camera[:, None] != camera
    assert (found[other] < 0.9).sum() > 50


def test_refuses_what_is_not_finite() -> None:
    features, camera = invented()
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="of image 3 are not finite"):
        camera_aware_distances(features, camera)


@on_ranks(1, 2, 3)
def by_ranks(world: World, folder: Path) -> list[torch.Tensor]:
    """Distances that ranks share."""
    found = camera_aware_distances(*invented(), split=spread_over(world))
    return [torch.from_numpy(getattr(found, name)) for name in ("data", "indices", "indptr")]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_do_not_change_a_bit(computed: Callable[..., Any], world_size: int) -> None:
    whole = computed(by_ranks, 1)[0]
    for rank in computed(by_ranks, world_size):
        assert all(torch.equal(*pair) for pair in zip(rank, whole, strict=True))
