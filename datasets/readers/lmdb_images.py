"""Encoded images in an LMDB environment, as the authors of LUPerson write one.

Each image is one key (ASCII) whose value is the encoded file. The list of keys that accompanies it, ``keys.pkl``, is a
pickle and is not read: the environment has the same keys.
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
_LOCK = threading.Lock()  # if two threads opened the same environment at once, one would be refused


@dataclass(frozen=True)
class LmdbImage:
    """One image of an environment; each worker process opens the environment itself."""

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


def find_environment(root: Path) -> Path | None:
    """The environment in `root` or in its folder ``lmdb`` or ``lup_lmdb``; None if there is none."""
    return next((folder for folder in (root, root / "lmdb", root / "lup_lmdb") if (folder / DATA).is_file()), None)


def match_keys(folder: Path, pattern: re.Pattern[str], expected: str) -> list[tuple[LmdbImage, re.Match[str]]]:
    """Every image of an environment, with the match of `pattern` to its whole key; no image is read.

    Raises:
        DataError: The environment cannot be opened, is empty, or has other keys.
    """
    try:
        with _environment(folder).begin() as transaction:
            keys = [bytes(key).decode("ascii", "backslashreplace")
                    for key in transaction.cursor().iternext(keys=True, values=False)]
    except lmdb.Error as error:
        raise DataError(f"{folder / DATA}: not an LMDB environment that can be read ({error})") from error
    if not keys:
        raise DataError(f"{folder / DATA}: contains no image")
    matches = [(key, pattern.fullmatch(key)) for key in keys]
    refuse(folder / DATA, [key for key, match in matches if match is None], f"keys are not {expected}",
           "shard it with the source that it belongs to")
    return [(LmdbImage(folder, key), match) for key, match in matches if match is not None]


def _environment(folder: Path) -> Any:
    with _LOCK:
        return open_in_process(folder, os.getpid())


@lru_cache(maxsize=4)
def open_in_process(folder: Path, process: int) -> Any:
    """The environment, opened once in each process: an open environment must not be carried over a fork."""
    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
