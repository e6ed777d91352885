"""The shard files of a dataset, in its folder or in the cache of remote files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.card import REMEDY, list_some
from embae.datasets.remote.url import Url

SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar")
"""A shard is a regular file next to the index. Any other name (a path, a url, "pipe:…") is refused."""


def check_names(names: Sequence[str], table: Path | Url) -> None:
    """Checks that shard names are names of tars next to the index.

    Raises:
        DataError: One is not.
    """
    for name in names:
        if not SHARD_NAME.fullmatch(name):
            raise DataError(f"{table}: {name!r} is not the name of a tar beside it; {REMEDY}")


def read_lengths(folder: Path, names: Sequence[str], ends: np.ndarray) -> np.ndarray:
    """Checks that shards exist and are long enough.

    Args:
        folder: The dataset's folder.
        names: File names of its shards.
        ends: `(shards,)`, where the last image of each shard ends, in bytes.

    Returns:
        Their lengths in bytes, `(shards,)` int64.

    Raises:
        DataError: Shards are missing or cut short, cannot be read, or are not regular files.
    """
    lengths = np.zeros(len(names), np.int64)
    missing, short = [], []
    for number, (name, end) in enumerate(zip(names, ends.tolist(), strict=True)):
        try:
            status = os.stat(folder / name)
        except FileNotFoundError:
            missing.append(name)
            continue
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror}); {REMEDY}") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{folder / name} is not a plain file; {REMEDY}")
        lengths[number] = status.st_size
        if status.st_size < end:
            short.append(f"{name} has {status.st_size:,} bytes, its last image ends at {end:,}")
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing ({list_some(missing)}); "
            "copy them here from where the dataset was made, or shard it again"
        )
    if short:
        raise DataError(f"{folder}: shards are cut short ({list_some(short)}); copy them again, or shard it again")
    return lengths


def open_shard(path: Path | Url, copy: str, least: int) -> int:
    """Opens a shard for reading; one of a remote dataset is downloaded if the cache does not have it.

    Args:
        path: The shard.
        copy: Name of its copy in the cache, if it is remote. The copy is not removed while it is open.
        least: The least number of bytes that it has.

    Returns:
        A file descriptor.

    Raises:
        OSError: The file cannot be opened.
        DataError: The file cannot be downloaded.
    """
    if not isinstance(path, Url):
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    return path.cache.open_copy(copy, least, lambda to: path.download(to, path.cache.max_bytes))
