"""What the card of a dataset says about its images: fingerprint and counts."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embae.datasets.index.card import FORMAT
from embae.datasets.index.columns import Columns
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.table import IndexTable


def fingerprint(columns: Columns | IndexTable) -> str:
    """SHA-256 over key, split, pid, camid, role and crc32 of the images; independent of how they are sharded."""
    digest = hashlib.sha256(f"embae index {FORMAT}, {len(columns)} rows\n".encode())
    for array in (
        np.asarray(pc.binary_length(columns.keys), dtype="<i4"),
        np.frombuffer(b"".join(_text(columns.keys)), dtype=np.uint8),
        columns.split.astype("<i1"),
        columns.labelled.astype("<i1"),
        np.where(columns.labelled, columns.pid, 0).astype("<i8"),
        columns.camid.astype("<i4"),
        columns.role.astype("<i1"),
        columns.crc32.astype("<u4"),
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _text(keys: pa.StringArray) -> list[memoryview]:
    """The characters of all keys in order, without copying each key."""
    _, ends, text = keys.buffers()
    ends = np.frombuffer(ends, dtype=np.int32, count=len(keys) + 1, offset=keys.offset * 4)
    return [memoryview(text)[ends[0] : ends[-1]]]


def counts(columns: Columns | IndexTable) -> dict[str, dict[str, Any]]:
    """Per split: images, identities (of role person), unlabelled images, images per role and per camera."""
    counts_by_split: dict[str, dict[str, Any]] = {}
    for code, split in enumerate(SPLITS):
        rows = columns.split == code
        role, labelled = columns.role[rows], columns.labelled[rows]
        persons = columns.pid[rows][labelled & (role == ROLES.index("person"))]
        cameras, images = np.unique(columns.camid[rows], return_counts=True)
        counts_by_split[split] = {
            "images": int(rows.sum()),
            "identities": len(np.unique(persons)),
            "unlabelled": int((~labelled).sum()),
            "roles": {name: int((role == position).sum()) for position, name in enumerate(ROLES)},
            "cameras": dict(zip(cameras.tolist(), images.tolist(), strict=True)),
        }
    return counts_by_split
