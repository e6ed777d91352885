"""A lock that keeps two processes from writing the same dataset, unless they are told to share the work."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError

_MOMENT_S = 5.0


@contextmanager
def sole_writer(path: Path, shared: bool = False) -> Iterator[None]:
    """Holds ``path`` as a lock file. The kernel lets go of it when this process ends, however it ends.

    Args:
        path: The lock file.
        shared: Keep out only those who want it for themselves. What writers that share do is right without any lock,
            as not every file system of several machines keeps one.

    Raises:
        DataError: Another process holds it.
    """
    descriptor = _acquire(path, shared)
    try:
        os.ftruncate(descriptor, 0)
        if not shared:
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if not shared or _is_last(descriptor):
            path.unlink(missing_ok=True)  # while held: whoever waits for this file finds it gone and makes another
        os.close(descriptor)


def _acquire(path: Path, shared: bool) -> int:
    give_up = time.monotonic() + _MOMENT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace")
            os.close(descriptor)
            if shared and not holder and time.monotonic() < give_up:
                time.sleep(0.01)  # the last of those who share holds it alone for a moment, to remove it
                continue
            raise DataError(
                f"{path}: {f'process {holder} is' if holder else 'others are'} writing this dataset; wait until it is "
                "done, or stop it; where several are to write one dataset, all of them want --join"
            ) from None
        except FileNotFoundError:
            pass  # the last holder removed it in this moment
        except OSError as error:
            if not shared:
                note(f"{path}: this file system has no locks ({error.strerror}); see that only one process writes here")
            return descriptor
        os.close(descriptor)


def _is_last(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here
    return True


@contextmanager
def unshared_name(folder: Path, name: str) -> Iterator[str]:
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
