"""Sparse Jaccard distances against a dense, literal transcription of k-reciprocal encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dense_jaccard import compute_jaccard_distance
from helpers.ranks import on_ranks
from scipy import sparse
from threadpoolctl import threadpool_limits

from embae.trainer.inference.embeddings import spread_over
from embae.trainer.retrieval import jaccard
from embae.trainer.retrieval import neighbours as nearest
from embae.trainer.retrieval.jaccard import jaccard_distances
from embae.trainer.runtime.distributed import World


def literally(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Zhong et al. 2017, §3.2-3.4, step by step with N × N matrices, k counting the image itself."""
    x = [row / (np.sqrt(np.sum(row * row)) or 1.0) for row in features.astype(np.float64)]
    count = len(x)
    d = [[2 - 2 * float(np.sum(x[i] * x[j])) for j in range(count)] for i in range(count)]
    ranked = [sorted(range(count), key=lambda j: (j != i, round(d[i][j], 8), j)) for i in range(count)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranked[i][:k] if i in ranked[j][:k]}

    v = np.zeros((count, count))
    for i in range(count):
        first = reciprocal(i, k1)
        expanded = set(first)
        for q in first:
            candidates = reciprocal(q, int(np.around(k1 / 2)) + 1)
            if len(first & candidates) > 2 / 3 * len(candidates):
                expanded |= candidates
        total = sum(np.exp(-d[i][j]) for j in expanded)
        for j in expanded:
            v[i, j] = np.exp(-d[i][j]) / total
    v = np.array([sum(v[j] for j in ranked[i][:k2]) / len(ranked[i][:k2]) for i in range(count)])
    result = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            result[i, j] = 1 - np.minimum(v[i], v[j]).sum() / np.maximum(v[i], v[j]).sum()
    return result


def dense(distances: sparse.csr_matrix) -> np.ndarray:
    """With what is absent filled in."""
    full = np.ones(distances.shape)
    for i in range(distances.shape[0]):
        entries = slice(distances.indptr[i], distances.indptr[i + 1])
        full[i, distances.indices[entries]] = distances.data[entries]
    return full


def people(seed: int, count: int = 60, dim: int = 8, each: int = 6) -> np.ndarray:
    """`(count, dim)`, some `each` images of a person."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // each), dim))
    return (centres[rng.integers(0, len(centres), count)] + 0.5 * rng.standard_normal((count, dim))).astype(np.float32)


def duplicates(seed: int) -> np.ndarray:
    """Each of some images two to a dozen times, in mixed order."""
    rng = np.random.default_rng(seed)
    return people(seed, 14)[rng.permutation(np.repeat(np.arange(14), rng.integers(2, 12, 14)))]


def signs(seed: int) -> np.ndarray:
    """Corners of a cube: nearly all distances tie, and their unit vectors are exact."""
    return np.random.default_rng(seed).choice([-2.0, 2.0], (70, 4)).astype(np.float32)


CASES = {
    "people": (people(0), 12, 4),
    "many": (people(1, 130, 16, 15), 30, 6),
    "odd k1": (people(2), 7, 3),
    "unaveraged": (people(3), 10, 1),
    "noise": (np.random.default_rng(4).standard_normal((80, 5)).astype(np.float32), 20, 6),
    "k1 = 1": (people(5), 1, 3),
    "k1 = 2": (people(5), 2, 2),
    "k1 = N": (people(6, 25), 25, 6),
    "k1 > N": (people(7, 20), 30, 6),
    "k2 > k1": (people(8), 4, 6),
    "duplicates": (duplicates(9), 8, 4),
    "more duplicates": (duplicates(10), 5, 6),
    "ties": (signs(11), 12, 5),
    "more ties": (signs(12), 30, 6),
    "a zero vector": (np.concatenate([people(13), np.zeros((2, 8), np.float32)]), 12, 4),
    "identical": (np.full((40, 3), 0.3, np.float32), 30, 6),
    "two images": (people(14, 2), 30, 6),
    "one image": (people(15, 1), 30, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_k_reciprocal_encoding(case: str) -> None:
    features, k1, k2 = CASES[case]
    given = features.copy()
    found = jaccard_distances(features, k1=k1, k2=k2)
    assert np.array_equal(features, given)
    assert found.dtype == np.float32 and found.shape == (len(features), len(features))
    np.testing.assert_allclose(dense(found), literally(features, k1, k2), atol=2e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (20, 6), (30, 1), (7, 3), (2, 2), (1, 1)])
@pytest.mark.parametrize(("count", "dim", "each"), [(60, 8, 6), (150, 32, 15), (40, 128, 3)])
def test_it_is_what_spcl_and_cluster_contrast_compute(
    seed: int, k1: int, k2: int, count: int, dim: int, each: int
) -> None:
    features = people(seed, count, dim, each)
    found = dense(jaccard_distances(features, k1=k1, k2=k2))
    np.testing.assert_allclose(found, compute_jaccard_distance(features, k1, k2), atol=2e-7)
    assert k1 < 7 or 0.01 < (found < 0.6).mean() < 0.99


@pytest.mark.parametrize("case", CASES)
def test_it_is_sparse_and_symmetric(case: str) -> None:
    features, k1, k2 = CASES[case]
    found = jaccard_distances(features, k1=k1, k2=k2)
    full = dense(found)
    assert np.array_equal(full, full.T)
    assert found.has_canonical_format
    assert (found.data >= 0).all() and (found.data < 1).all()
    # The diagonal is held, as zeros.
    held = sparse.csr_matrix((np.ones(found.nnz), found.indices, found.indptr), shape=found.shape)
    assert (held.diagonal() == 1).all() and (found.diagonal() == 0).all()


def test_images_of_different_people_are_absent() -> None:
    features = np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    found = jaccard_distances(features, k1=10, k2=3)
    assert found.nnz == 6 * 10 * 10
    assert np.abs(found.data).max() < 1e-7


def test_far_pairs_are_left_out() -> None:
    features = people(0)
    whole = dense(jaccard_distances(features, k1=12))
    found = jaccard_distances(features, k1=12, farthest=0.6)
    assert 0 < found.nnz < (whole < 1).sum()
    assert np.array_equal(dense(found), np.where(whole <= np.float32(0.6), whole, 1))
    edge = float(found.data.max())
    assert jaccard_distances(features, k1=12, farthest=edge).nnz == found.nnz


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    features = people(0, 300, 16)
    whole = jaccard_distances(features, k1=20)
    for sizes in ((1, 1, 1, 1, 100, 150), (300 * 7, 300 * 11, 500, 13, 25, 27), (19200, 19200, 2**20, 128, 9, 300)):
        similarities, sums, terms, rows, first, columns = sizes
        for module, values in (
            (nearest, {"_SIMILARITIES": similarities, "_ROWS": rows, "_FIRST": first, "_COLUMNS": columns}),
            (jaccard, {"_SUMS": sums, "_TERMS": terms, "_ROWS": rows}),
        ):
            for name, size in values.items():
                monkeypatch.setattr(module, name, size)
        parts = jaccard_distances(features, k1=20)
        for one in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(parts, one), getattr(whole, one))


@on_ranks(1, 2, 3)
def by_ranks(world: World, folder: Path) -> dict[str, Any]:
    """Distances of some cases, and what each rank says of too many pairs of the last images."""
    found: dict[str, Any] = {}
    for case in ("many", "duplicates", "ties", "two images", "one image"):
        features, k1, k2 = CASES[case]
        distances = jaccard_distances(features, k1=k1, k2=k2, farthest=0.8, split=spread_over(world))
        found[case] = [torch.from_numpy(getattr(distances, name)) for name in ("data", "indices", "indptr")]
    collapsed = np.concatenate([np.eye(200, dtype=np.float32), np.ones((60, 200), np.float32)])
    jaccard.MOST_PAIRS = 1000
    try:
        jaccard_distances(collapsed, split=spread_over(world))
    except ValueError as error:
        found["said"] = str(error)
    finally:
        jaccard.MOST_PAIRS = 2**29
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_change_no_bit_and_fail_together(computed: Callable[..., Any], world_size: int) -> None:
    one = computed(by_ranks, 1)[0]
    for found in computed(by_ranks, world_size):
        assert found.keys() == one.keys()
        assert "260 images have" in found["said"]
        for case in one.keys() - {"said"}:
            for ours, wanted in zip(found[case], one[case], strict=True):
                assert ours.dtype == wanted.dtype and torch.equal(ours, wanted)


def test_length_and_order_of_images_do_not_matter() -> None:
    features = people(1)
    whole = dense(jaccard_distances(features, k1=12))
    rng = np.random.default_rng(0)
    # Powers of two leave every digit as it is.
    scaled = features * 2.0 ** rng.integers(-60, 60, (len(features), 1)).astype(np.float32)
    assert np.array_equal(dense(jaccard_distances(scaled, k1=12)), whole)
    order = rng.permutation(len(features))
    mixed = dense(jaccard_distances(features[order], k1=12))
    np.testing.assert_allclose(mixed, whole[np.ix_(order, order)], atol=2e-7)


def test_threads_do_not_change_it() -> None:
    features = np.random.default_rng(0).standard_normal((700, 333), dtype=np.float32)
    with threadpool_limits(limits=1):
        one = jaccard_distances(features)
    with threadpool_limits(limits=2):
        two = jaccard_distances(features)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("data", "indices", "indptr"))


def test_too_many_pairs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaccard, "MOST_PAIRS", 1599)
    with pytest.raises(ValueError, match="collapsed"):
        jaccard_distances(np.ones((40, 3), np.float32))


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (people(0), {"k1": 0}, "at least 1"),
        (people(0), {"k2": 0}, "at least 1"),
        (np.zeros(4, np.float32), {}, r"\(N, F\)"),
        (np.zeros((0, 4), np.float32), {}, r"\(N, F\)"),
        (np.where(np.arange(12).reshape(4, 3) == 7, np.nan, 1), {}, "image 2 are not finite"),
    ],
)
def test_errors(features: np.ndarray, k: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jaccard_distances(features, **k)
