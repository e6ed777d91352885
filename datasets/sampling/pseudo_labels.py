"""Pseudo-labels beside an index: identities that a clustering gave to images, and the view that reads by them.

    labels.npy      `(images,)` int64, one a row of the split, −1 for an image that is left out
    labels.json     of which dataset, by its fingerprint
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.files.plain import read_bytes
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Split
from embae.datasets.sampling.view import PERSON, View

LABELS, CARD = "labels.npy", "labels.json"


def write_labels(folder: Path, index: Index, split: Split, labels: np.ndarray) -> None:
    """Writes the pseudo-labels of a split into a folder."""
    np.save(folder / LABELS, labels.astype(np.int64), allow_pickle=False)
    card = {"dataset": index.name, "fingerprint": index.fingerprint, "split": split}
    write_json(folder / CARD, card, indent=None)


def read_labels(folder: Path, index: Index, split: Split) -> np.ndarray:
    """Reads pseudo-labels: `(images,)` int64.

    Raises:
        DataError: Missing, damaged, or of another dataset.
    """
    images = index.count(split)
    head = _head(images)
    try:
        card = read_json(folder / CARD)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no pseudo-labels can be read there ({error}); run their stage again") from error
    found = card if isinstance(card, dict) else {}
    if (found.get("fingerprint"), found.get("split")) != (index.fingerprint, split):
        raise DataError(f"{folder}: pseudo-labels of another dataset than {index.root}, or another split (fingerprint "
                        f"{str(found.get('fingerprint'))[:80]}, wanted {index.fingerprint}); run their stage again")
    try:
        data = read_bytes(folder / LABELS, len(head) + 8 * images)
        if len(data) < len(head) + 8 * images or not data.startswith(head):
            raise ValueError(f"{LABELS} is not {images} labels of int64")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no pseudo-labels can be read there ({error}); run their stage again") from error
    labels = np.frombuffer(data[len(head):], "<i8")
    if ((labels < -1) | (labels >= images)).any():
        raise DataError(f"{folder}: wanted a pseudo-label from -1 to {images - 1} for each of {images} images; run "
                        "their stage again")
    return labels


def _head(images: int) -> bytes:
    """What `np.save` writes before the labels: compared, not parsed, as a stranger's may say anything."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (images,)})
    return head.getvalue()


class RelabelledView(View):
    """A view of one split; the last dataset's images bear pseudo-labels for pids, and those left out are not in it.

    Its identities lie side by side, in the order of their labels, and everyone is a person: what the index knows of
    pids and roles is not looked at. The other datasets stand before it as they are.

    Args:
        indexes: The datasets.
        split: Which of their images.
        labels: `(images,)` int64 of the last dataset's, −1 for an image that is left out.

    Raises:
        DataError: A split is empty, or every image is left out.
    """

    def __init__(self, indexes: Sequence[Index], split: Split, labels: np.ndarray):
        super().__init__(indexes, split)
        if not (labels >= 0).any():
            raise DataError(f"{indexes[-1].root}: the clustering left out every image; set a larger eps, or a lower "
                            "similarity")
        *others, last = indexes
        before = View(others, split) if others else None
        self._before = len(before) if before else 0
        # Within an identity by content, so that the index's order, which knows pids, plays no part.
        order = np.lexsort((View([last], split).fingerprints(), labels))
        self._order = order[labels[order] >= 0]
        self._labels = labels[self._order]
        first = self._before + np.concatenate([[0], np.flatnonzero(np.diff(self._labels)) + 1])
        past = np.append(first[1:], len(self))
        self.identities = [*(before.identities if before else []), np.stack([first, past, past - first], 1)]

    def __len__(self) -> int:
        return self._before + len(self._order)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the view that leaves nobody out."""
        places, ours = np.array(rows), rows >= self._before
        places[ours] = self._before + self._order[rows[ours] - self._before]
        return places

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().locate(self._places(rows))

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name not in ("pid", "labelled", "role"):
            return super().column(name, rows)
        values, ours = np.empty(len(rows), np.int64), rows >= self._before
        values[~ours] = super().column(name, rows[~ours])
        values[ours] = {"pid": self._labels[rows[ours] - self._before], "labelled": 1, "role": PERSON}[name]
        return values

    def side_by_side(self, dataset: int) -> bool:
        return dataset < len(self.indexes) - 1

    def cameras(self) -> list[tuple[str, int]]:
        pairs = np.unique(np.stack([*self.locate(rows := np.arange(len(self))), self.column("camid", rows)])[[0, 2]],
                          axis=1)
        return sorted((self.names[dataset], camid) for dataset, camid in pairs.T.tolist())

    def fingerprints(self) -> np.ndarray:
        return super().fingerprints()[self._places(np.arange(len(self)))]


def agreement(labels: np.ndarray, pid: np.ndarray, camid: np.ndarray) -> dict[str, float]:
    """For the record: how pseudo-labels agree with identities.

    Args:
        labels: `(N,)`, −1 for an image that is left out.
        pid: `(N,)`, who is on it.
        camid: `(N,)`, its camera.

    Returns:
        ``purity``, the share of labelled images whose pseudo-label's commonest identity is theirs; a cluster of one
        image is pure. ``precision``, of the pairs of images with one pseudo-label the share that is of one identity;
        ``recall``, of the pairs of one identity, images left out included, the share with one pseudo-label;
        ``cross_precision`` and ``cross_recall``, the same of pairs on two cameras. What has nothing to be a share of is
        left out.
    """
    pid = np.unique(pid, return_inverse=True)[1]
    kept = labels >= 0
    label, truth, camera = labels[kept], pid[kept], camid[kept]
    cluster, counts = _counts(label, truth)
    commonest = np.zeros(label.max(initial=-1) + 1, np.int64)
    np.maximum.at(commonest, cluster[0], counts)
    shares = {"purity": (int(commonest.sum()), len(label))}
    both, labelled, same = _pairs(label, truth), _pairs(label), _pairs(pid)
    shares |= {"precision": (both, labelled), "recall": (both, same)}
    both -= _pairs(label, truth, camera)
    labelled, same = labelled - _pairs(label, camera), same - _pairs(pid, camid)
    shares |= {"cross_precision": (both, labelled), "cross_recall": (both, same)}
    return {name: some / whole for name, (some, whole) in shares.items() if whole}


def _counts(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which combinations there are, and of how many images: a table of all that there could be would not fit."""
    found, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    return found, counts


def _pairs(*columns: np.ndarray) -> int:
    """Pairs of images that are equal in all columns."""
    counts = _counts(*columns)[1]
    return int((counts * (counts - 1) // 2).sum())
