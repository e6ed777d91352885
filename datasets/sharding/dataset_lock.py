"""A lock that prevents two processes from writing the same dataset, unless both join (``embae shard --join``)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.files.locks import LockFile

_REMOVAL_S = 5.0  # in which the last of several writers has surely removed the lock file


@contextmanager
def dataset_lock(path: Path, *, join: bool = False) -> Iterator[None]:
    """Locks a dataset for writing.

    Args:
        path: The lock file.
        join: Exclude only writers that do not join. Writers that join produce a correct dataset without any lock, as
            not every file system that machines share supports locks.

    Raises:
        DataError: Another process has the lock.
        OSError: The lock file cannot be created.
    """
    lock = _acquire(path, join)
    if lock.unsupported and not join:
        note(f"{path}: this file system has no locks ({lock.unsupported}); make sure that only one process writes here")
    try:
        lock.write("" if join else str(os.getpid()))
        yield
    finally:
        lock.release()


def _acquire(path: Path, join: bool) -> LockFile:
    deadline = time.monotonic() + _REMOVAL_S
    while True:
        if lock := LockFile.acquire(path, shared=join):
            return lock
        try:
            holder = path.read_text("ascii", "replace")
        except FileNotFoundError:
            continue  # removed since
        if not join or holder or time.monotonic() >= deadline:
            raise DataError(
                f"{path}: {f'process {holder} is' if holder else 'others are'} writing this dataset; wait until it is "
                "done, or stop it; for several processes to write one dataset, start all of them with --join"
            )
        time.sleep(0.01)  # the last of those that joined has it for itself for a moment, to remove it
