"""Files of pseudo-labels: identities that a clustering assigned to the images of a split.

    labels.npy      `(images,)` int64, one per row of the split, −1 for an image that is left out
    labels.json     the dataset that they belong to, by its fingerprint
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.files.plain import read_bytes
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Split

LABELS, CARD = "labels.npy", "labels.json"


def write_labels(folder: Path, index: Index, split: Split, labels: np.ndarray) -> None:
    """Writes the pseudo-labels of a split into a folder.

    Args:
        folder: An existing folder.
        index: The dataset.
        split: The split.
        labels: `(images,)`, −1 for an image that is left out.
    """
    np.save(folder / LABELS, labels.astype(np.int64), allow_pickle=False)
    card = {"dataset": index.name, "fingerprint": index.fingerprint, "split": split}
    write_json(folder / CARD, card, indent=None)


def read_labels(folder: Path, index: Index, split: Split) -> np.ndarray:
    """Reads pseudo-labels: `(images,)` int64, −1 for an image that is left out.

    Raises:
        DataError: They are missing, damaged, or belong to another dataset or split.
    """
    images = index.count(split)
    header = _npy_header(images)
    try:
        card = read_json(folder / CARD)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: pseudo-labels cannot be read ({error}); run their stage again") from error
    fields = card if isinstance(card, dict) else {}
    if (fields.get("fingerprint"), fields.get("split")) != (index.fingerprint, split):
        raise DataError(f"{folder}: pseudo-labels of another dataset than {index.root}, or another split (fingerprint "
                        f"{str(fields.get('fingerprint'))[:80]}, expected {index.fingerprint}); run their stage again")
    try:
        data = read_bytes(folder / LABELS, len(header) + 8 * images)
        if len(data) < len(header) + 8 * images or not data.startswith(header):
            raise ValueError(f"{LABELS} is not {images} labels of int64")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: pseudo-labels cannot be read ({error}); run their stage again") from error
    labels = np.frombuffer(data[len(header):], "<i8")
    if ((labels < -1) | (labels >= images)).any():
        raise DataError(f"{folder}: expected a pseudo-label from -1 to {images - 1} for each of {images} images; run "
                        "their stage again")
    return labels


def _npy_header(images: int) -> bytes:
    """What `np.save` writes before the labels. It is compared instead of parsed: a file may contain anything."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (images,)})
    return header.getvalue()
