"""Reads a dataset by the name of its reader, and gives every image a WebDataset key."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers.image_files import SUFFIXES, refuse
from embae.datasets.readers.options import choose_from, convert_options
from embae.datasets.readers.registry import READERS


def read_records(source: str, root: Path | None, options: Mapping[str, str]) -> list[Record]:
    """The images of a dataset, sorted, each with a key that WebDataset accepts.

    Args:
        source: A name in `READERS`.
        root: The folder of original images; None for a reader that draws its images.
        options: The reader's options, as written on the command line.

    Raises:
        DataError: The source or an option is unknown, or the images are not as the reader expects them.
    """
    if source not in READERS:
        raise DataError(f"unknown source {source!r}{choose_from(source, READERS)}")
    reader = READERS[source]
    arguments = convert_options(source, reader.list_records, options)
    if reader.needs_root:
        if root is None:
            raise DataError(f"{source}: no root given; say where the original images are (--root FOLDER)")
        if not root.exists():
            raise DataError(f"{source}: {root}: no such folder; expected the one with the original images (--root)")
        arguments["root"] = root
    return _with_safe_keys(source, reader.list_records(**arguments))


def _with_safe_keys(source: str, records: list[Record]) -> list[Record]:
    """Sorted, with keys of letters, digits, ``_`` and ``-``; keys that become equal end in a hash of the original."""
    records = sorted(records, key=lambda record: record.key)
    repeated = [record.key for record, following in pairwise(records) if record.key == following.key]
    refuse(source, repeated, "two images have the same name", "rename one or move it away")
    keys = [_safe_key(record.key) for record in records]
    uses = Counter(keys)
    return [
        replace(record, key=key if uses[key] == 1 else f"{key}-{_digest(record.key)}")
        for record, key in zip(records, keys, strict=True)
    ]


def _safe_key(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem if suffix.lower() in SUFFIXES else path)


def _digest(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
