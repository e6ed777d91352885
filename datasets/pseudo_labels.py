"""Pseudo-labels beside an index: identities that a clustering gave to images, and the view that reads by them.

    labels.npy      `(images,)` int64, one a row of the split, −1 for an image that is left out
    labels.json     of which dataset, by its fingerprint
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.plain import read_bytes, read_json
from embae.datasets.records import Split
from embae.datasets.view import PERSON, View

LABELS, CARD = "labels.npy", "labels.json"


def write_labels(folder: Path, index: Index, split: Split, labels: np.ndarray) -> None:
    """Writes the pseudo-labels of a split into a folder."""
    np.save(folder / LABELS, labels.astype(np.int64), allow_pickle=False)
    card = {"dataset": index.name, "fingerprint": index.fingerprint, "split": split}
    (folder / CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")


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
    """A view of one split whose images bear pseudo-labels for pids; images that are left out are not in it.

    Identities lie side by side in it, in the order of their labels, and everyone is a person: what the index knows of
    pids and roles is not looked at.

    Args:
        index: The dataset.
        split: Which of its images.
        labels: `(images,)` int64, −1 for an image that is left out.

    Raises:
        DataError: The split is empty, or every image is left out.
    """

    def __init__(self, index: Index, split: Split, labels: np.ndarray):
        super().__init__([index], split)
        if not (labels >= 0).any():
            raise DataError(f"{index.root}: the clustering left out every image; set a larger eps, or a lower "
                            "similarity")
        # Within an identity by content, so that the index's order, which knows pids, plays no part.
        order = np.lexsort((super().fingerprints(), labels))
        self._order = order[labels[order] >= 0]
        self._labels = labels[self._order]
        first = np.concatenate([[0], np.flatnonzero(np.diff(self._labels)) + 1])
        past = np.append(first[1:], len(self._labels))
        self.identities = [np.stack([first, past, past - first], 1)]

    def __len__(self) -> int:
        return len(self._order)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().locate(self._order[rows])

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name in ("pid", "labelled", "role"):
            return {"pid": self._labels[rows], "labelled": np.ones(len(rows), np.int64),
                    "role": np.full(len(rows), PERSON, np.int64)}[name]
        return super().column(name, rows)

    def cameras(self) -> list[tuple[str, int]]:
        name = self.indexes[0].name
        return [(name, int(camid)) for camid in np.unique(self.column("camid", np.arange(len(self))))]

    def fingerprints(self) -> np.ndarray:
        return super().fingerprints()[self._order]


def agreement(labels: np.ndarray, pid: Sequence[int] | np.ndarray) -> float:
    """For the record: the share of labelled images whose pseudo-label's commonest identity is theirs (purity)."""
    kept, truth = labels[labels >= 0], np.unique(np.asarray(pid)[labels >= 0], return_inverse=True)[1]
    if not len(kept):
        return float("nan")
    counts = np.zeros((kept.max() + 1, truth.max() + 1), np.int64)
    np.add.at(counts, (kept, truth), 1)
    return float(counts.max(1).sum() / len(kept))
