"""The images of a source as records: sorted, with keys that WebDataset takes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers.image_files import SUFFIXES, refuse
from embae.datasets.readers.options import convert
from embae.datasets.readers.registry import find_reader


def read_records(source: str, root: Path | None, options: Mapping[str, str]) -> list[Record]:
    """The images of a dataset, sorted, each with a key fit for WebDataset.

    Args:
        source: A name of `READERS`.
        root: The folder of original images; a source that draws its images needs none.
        options: The reader's options, as written on the command line.

    Raises:
        DataError: An unknown source or option, or images that are not as the source has them.
    """
    reader = find_reader(source)
    arguments = convert(source, reader, options)
    if "root" in signature(reader).parameters:
        if root is None:
            raise DataError(f"{source}: no root given; say where the original images are (--root FOLDER)")
        if not root.exists():
            raise DataError(f"{source}: {root}: no such folder; wanted the one with the original images")
        arguments["root"] = root
    return _keyed(source, reader(**arguments))


def _keyed(source: str, records: list[Record]) -> list[Record]:
    """Sorted, with keys of letters, digits, ``_`` and ``-``; those that become alike get a hash of what they were."""
    records = sorted(records, key=lambda record: record.key)
    twice = [record.key for record, after in pairwise(records) if record.key == after.key]
    refuse(source, twice, "two images have the same name", "rename one or move it away")
    keys = [_key(record.key) for record in records]
    alike = Counter(keys)
    return [
        replace(record, key=key if alike[key] == 1 else f"{key}-{_digest(record.key)}")
        for record, key in zip(records, keys, strict=True)
    ]


def _key(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem if suffix.lower() in SUFFIXES else path)


def _digest(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
