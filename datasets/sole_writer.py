"""A lock that keeps two processes from writing the same dataset."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.progress import note


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Holds ``path`` as a lock file. The kernel lets go of it when this process ends, however it ends.

    Raises:
        DataError: Another process holds it.
    """
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while held: whoever waits for this file finds it gone and makes another
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace")
            os.close(descriptor)
            raise DataError(
                f"{path}: process {holder or 'unknown'} is writing this dataset; wait until it is done, or stop it"
            ) from None
        except FileNotFoundError:
            pass  # the last holder removed it in this moment
        except OSError as error:
            note(f"{path}: this file system has no locks ({error.strerror}); see that only one process writes here")
            return descriptor
        os.close(descriptor)
