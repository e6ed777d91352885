"""Encoded images in an LMDB environment, as the authors of LUPerson make one.

A key an image (ASCII), its value the encoded file. The list of keys that lies beside it, ``keys.pkl``, is a pickle and
not read: the environment has the same keys.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lmdb

from embae.datasets.errors import DataError
from embae.datasets.readers.image_files import refuse

DATA = "data.mdb"
_LOCK = threading.Lock()  # of two threads that open the same one at once, one would be refused


@dataclass(frozen=True)
class LmdbImage:
    """One image of an environment; each worker process opens it by itself."""

    folder: Path
    key: str

    def read(self) -> bytes:
        try:
            with _environment(self.folder).begin() as transaction:
                value = transaction.get(self.key.encode())
        except lmdb.Error as error:
            raise DataError(f"{self}: cannot be read ({error})") from error
        if value is None:
            raise DataError(f"{self}: is no longer there; was the environment written again?")
        return bytes(value)

    def __str__(self) -> str:
        return f"{self.folder / DATA}:{self.key}"


def find(root: Path) -> Path | None:
    """The environment in `root`, or in the folder ``lmdb`` or ``lup_lmdb`` of it; None where there is none."""
    return next((folder for folder in (root, root / "lmdb", root / "lup_lmdb") if (folder / DATA).is_file()), None)


def matches(folder: Path, pattern: re.Pattern[str], wanted: str) -> list[tuple[LmdbImage, re.Match[str]]]:
    """Every image of an environment, with what `pattern` finds in the whole of its key; no image is read.

    Raises:
        DataError: It cannot be opened, is empty, or has other keys.
    """
    try:
        with _environment(folder).begin() as transaction:
            keys = [bytes(key).decode("ascii", "backslashreplace")
                    for key in transaction.cursor().iternext(keys=True, values=False)]
    except lmdb.Error as error:
        raise DataError(f"{folder / DATA}: not an LMDB environment that can be read ({error})") from error
    if not keys:
        raise DataError(f"{folder / DATA}: holds no image")
    found = [(key, pattern.fullmatch(key)) for key in keys]
    refuse(folder / DATA, [key for key, match in found if match is None], f"keys are not {wanted}",
           "read it as the set that it is of")
    return [(LmdbImage(folder, key), match) for key, match in found if match is not None]


def _environment(folder: Path) -> Any:
    with _LOCK:
        return _opened(folder, os.getpid())


@lru_cache(maxsize=4)
def _opened(folder: Path, process: int) -> Any:
    """Open in this process: an environment must not be carried over a fork."""
    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
