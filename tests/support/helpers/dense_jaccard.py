"""`compute_jaccard_distance` of SpCL (arXiv 2006.02713) and Cluster Contrast (arXiv 2103.11568), N × N as there."""

from __future__ import annotations

from typing import Any

import numpy as np


def compute_jaccard_distance(features: np.ndarray, k1: int, k2: int, dtype: Any = np.float64) -> np.ndarray:
    """Jaccard distances `(N, N)`, step by step as there; the search by matmul and a sort in place of faiss.

    Args:
        features: `(N, F)`, none of them zero, divided by their length here; they should not tie.
        k1: As there, 30 by default.
        k2: As there, 6 by default.
        dtype: What is computed in; float32 there.
    """
    x = features.astype(dtype) / np.linalg.norm(features.astype(dtype), axis=1, keepdims=True)
    count = len(x)
    initial_rank = np.concatenate([_search(x, x[start : start + 512], k1) for start in range(0, count, 512)])

    def k_reciprocal(i: int, k: int) -> np.ndarray:
        forward = initial_rank[i, : k + 1]  # no more than the k1 that there are
        backward = initial_rank[forward, : k + 1]
        return forward[np.where(backward == i)[0]]

    nn_k1 = [k_reciprocal(i, k1) for i in range(count)]
    nn_k1_half = [k_reciprocal(i, int(np.around(k1 / 2))) for i in range(count)]
    v = np.zeros((count, count), dtype)
    for i in range(count):
        index = nn_k1[i]
        for candidate in nn_k1[i]:
            its = nn_k1_half[candidate]
            if len(np.intersect1d(its, nn_k1[i])) > 2 / 3 * len(its):
                index = np.append(index, its)
        index = np.unique(index)
        softmax = np.exp(-(2 - 2 * x[i] @ x[index].T))
        v[i, index] = softmax / softmax.sum()
    if k2 != 1:
        averaged = np.zeros_like(v)
        for i in range(count):
            averaged[i] = np.mean(v[initial_rank[i, :k2]], axis=0)
        v = averaged
    inverted = [np.where(v[:, k] != 0)[0] for k in range(count)]
    distances = np.zeros((count, count), dtype)
    for i in range(count):
        least = np.zeros(count, dtype)
        for k in np.where(v[i] != 0)[0]:
            least[inverted[k]] += np.minimum(v[i, k], v[inverted[k], k])
        distances[i] = 1 - least / (2 - least)
    return np.maximum(distances, 0, out=distances)


def _search(x: np.ndarray, some: np.ndarray, k: int) -> np.ndarray:
    similarity = some @ x.T
    few = np.argpartition(-similarity, min(k, len(x)) - 1, axis=1)[:, :k]
    return np.take_along_axis(few, np.argsort(-np.take_along_axis(similarity, few, axis=1), axis=1), axis=1)
