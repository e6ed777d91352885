"""Reads regular files up to a size limit: a file from a stranger may be a pipe that never ends, or huge."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def read_bytes(path: Path, most: int) -> bytes:
    """Reads a regular file of at most ``most`` bytes.

    Raises:
        OSError: The file cannot be read, is larger, or is not a regular file (reading it may never end).
        ValueError: The path is not a valid path.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
    return data


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        ValueError: The path is not a valid path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
