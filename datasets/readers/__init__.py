"""Readers: a folder of original images becomes records.

A reader is a plain function ``records(root: Path, *, option: type = default, …) -> list[Record]``. Its signature is the
whole interface: allowed options, their types and their choices (``Literal``) are taken from it. The key of a record may
be any string unique in the dataset, such as a relative path; `read` makes it a WebDataset key and sorts. Pids are kept
as the dataset writes them and cameras are numbered as the dataset numbers them, from 1, unless a reader says otherwise.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers import (
    cuhk01,
    cuhk03,
    dukemtmc,
    folder,
    luperson,
    luperson_nl,
    market1501,
    msmt17,
    pku_reid,
    table,
    viper,
    ward,
)
from embae.datasets.readers._common import SUFFIXES, refuse
from embae.datasets.readers._options import convert, did_you_mean

__all__ = ["SOURCES", "Reader", "read"]

Reader = Callable[..., list[Record]]

SOURCES: dict[str, Reader] = {
    "market1501": market1501.records,
    "dukemtmc": dukemtmc.records,
    "cuhk03": cuhk03.records,
    "cuhk01": cuhk01.records,
    "viper": viper.records,
    "ward": ward.records,
    "msmt17": msmt17.records,
    "pku-reid": pku_reid.records,
    "luperson": luperson.records,
    "luperson-nl": luperson_nl.records,
    "folder": folder.records,
    "csv": table.records,
}


def read(source: str, root: Path | None, options: Mapping[str, str]) -> list[Record]:
    """The images of a dataset, sorted, each with a key fit for WebDataset.

    Args:
        source: A name of `SOURCES`, or ``synthetic``.
        root: The folder of original images; what a source generates itself needs none.
        options: The reader's options, as written on the command line.

    Raises:
        DataError: An unknown source or option, or images that are not as the source has them.
    """
    reader = _reader(source)
    arguments = convert(source, reader, options)
    if "root" in signature(reader).parameters:
        if root is None:
            raise DataError(f"{source}: no root given; say where the original images are (--root FOLDER)")
        if not root.exists():
            raise DataError(f"{source}: {root}: no such folder; wanted the one with the original images")
        arguments["root"] = root
    return _keyed(source, reader(**arguments))


def _reader(source: str) -> Reader:
    if source == "synthetic":
        from embae.datasets import synthetic  # imported on use: it draws, and no other source needs that

        return synthetic.records
    if source not in SOURCES:
        raise DataError(f"unknown source {source!r}{did_you_mean(source, [*SOURCES, 'synthetic'])}")
    return SOURCES[source]


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
