"""How pseudo-labels agree with identities, for the records."""

from __future__ import annotations

import numpy as np


def measure_agreement(labels: np.ndarray, pid: np.ndarray, camid: np.ndarray) -> dict[str, float]:
    """Compares pseudo-labels with identities.

    Args:
        labels: `(N,)`, −1 for an image that is left out.
        pid: `(N,)`, identities.
        camid: `(N,)`, cameras.

    Returns:
        ``purity``: the share of labelled images that have the most frequent identity of their pseudo-label; a cluster
        of one image is pure. ``precision``: of the pairs of images with the same pseudo-label, the share with the same
        identity. ``recall``: of the pairs with the same identity, including images left out, the share with the same
        pseudo-label. ``cross_precision`` and ``cross_recall``: the same for pairs from two cameras. A share of nothing
        is omitted.
    """
    pid = np.unique(pid, return_inverse=True)[1]
    labelled = labels >= 0
    label, truth, camera = labels[labelled], pid[labelled], camid[labelled]
    cluster, counts = _counts(label, truth)
    commonest = np.zeros(label.max(initial=-1) + 1, np.int64)
    np.maximum.at(commonest, cluster[0], counts)
    shares = {"purity": (int(commonest.sum()), len(label))}
    both, same_label, same_pid = _pairs(label, truth), _pairs(label), _pairs(pid)
    shares |= {"precision": (both, same_label), "recall": (both, same_pid)}
    both -= _pairs(label, truth, camera)
    same_label, same_pid = same_label - _pairs(label, camera), same_pid - _pairs(pid, camid)
    shares |= {"cross_precision": (both, same_label), "cross_recall": (both, same_pid)}
    return {name: part / total for name, (part, total) in shares.items() if total}


def _counts(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The combinations of values that occur and their counts; a table of all combinations would not fit into memory."""
    combinations, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    return combinations, counts


def _pairs(*columns: np.ndarray) -> int:
    """Pairs of images that are equal in all columns."""
    counts = _counts(*columns)[1]
    return int((counts * (counts - 1) // 2).sum())
