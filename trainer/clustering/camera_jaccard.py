"""Jaccard distance of k-reciprocal neighbours that are looked for by camera (Chen et al. 2024, arXiv 2311.10605).

Images of one person are nearer on one camera than across cameras, and so are those of strangers. Where all are ranked
together, an image's own camera fills its neighbours, and clusters end at the camera. Here each image has two lists, of
the nearest on its own camera and of the nearest on all others, and in the notation of `jaccard.py`::

    R(i)      j of N_own(i, own) with i in N_own(j, own), and j of N_others(i, others) with i in N_others(j, others)
    V_ij      exp(2 s_ij − 2) for j of R(i), else 0; then rows divided by their sum
    V'_i      mean of V_j over the first few of both lists
    d_ij      1 − m / (2 − m) with m = Σ_k min(V'_ik, V'_jk)

As theirs, without the neighbours' neighbours: with lists so short these add little. Memory, ranks and exactness are as
there.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embae.trainer.retrieval.fixed_point import check_finite, fixed_point
from embae.trainer.retrieval.jaccard import averaged, normalised, pairwise, reciprocal
from embae.trainer.retrieval.neighbours import nearest, similarities
from embae.trainer.retrieval.work_split import WorkSplit


def camera_aware_distances(
    features: np.ndarray, cameras: np.ndarray, *, same_camera: int = 5, other_cameras: int = 10, average: int = 2,
    split: WorkSplit | None = None
) -> sparse.csr_matrix:
    """Camera-aware Jaccard distances of all images.

    Args:
        features: `(N, F)`, divided by their length here; a zero vector stays zero. May be memory-mapped.
        cameras: `(N,)`, the camera of each.
        same_camera: Number of nearest images of its own camera, itself not counted, among which reciprocal neighbours
            are looked for.
        other_cameras: The same on all other cameras together.
        average: From each list, itself included in the first, so many rows of V are averaged.
        split: The ranks, each with the same arguments; by default this process alone.

    Returns:
        As `jaccard.jaccard_distances` without `farthest`.

    Raises:
        ValueError: Features are no finite matrix with at least one row, or the pairs take more than 4 GiB.
    """
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must be (N, F), not of shape {features.shape}")
    check_finite(features, "the features of image {} are")
    x, split = fixed_point(features), split or WorkSplit()
    within = np.repeat(np.arange(len(x), dtype=np.int32)[:, None], same_camera + 1, axis=1)
    for camera in np.unique(cameras):
        rows = np.flatnonzero(cameras == camera)
        nearest_rows = nearest(x[rows], same_camera + 1, split=split)[0]
        within[rows, :nearest_rows.shape[1]] = rows[nearest_rows]
    across = nearest(x, other_cameras + 1, split=split, apart=cameras)[0][:, 1:]
    neighbours = (reciprocal(within, same_camera + 1) + reciprocal(across, other_cameras)).tocsr()
    neighbours.sort_indices()
    weights = normalised(neighbours, np.exp(2 * similarities(x, neighbours, split) - 2))
    del x
    near = np.concatenate([within[:, :average], across[:, :average]], axis=1)
    return pairwise(averaged(near, near.shape[1], weights), 1.0, split)
