"""A lock that keeps two processes from writing the same dataset, unless they are told to share the work."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.progress import note

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
