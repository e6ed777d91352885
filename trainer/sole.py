"""Files in a folder that several processes work in: each has its own, one that a killed process left is taken over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO


@contextmanager
def sole(folder: Path, name: str) -> Iterator[str]:
    """Within it no other process is given the same name, which begins as asked; of those that are free it is the first.

    Args:
        folder: Made if need be, and removed again where nothing else is in it.
        name: Of a file.
    """
    taken, path, file = next(_free(folder, name))
    try:
        yield taken
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for nothing finds either this lock or none
        file.close()
        with suppress(OSError):  # the folder holds other things
            folder.rmdir()


def _free(folder: Path, name: str) -> Iterator[tuple[str, Path, IO[bytes]]]:
    for number in count():
        taken = f"{name}-{number}" if number else name
        if file := _held(path := folder / f"{taken}.lock"):
            yield taken, path, file


def _held(path: Path) -> IO[bytes] | None:
    """The lock, held until it is closed or the process ends; None where another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:  # another one removed the folder just now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its holder removed it just now
