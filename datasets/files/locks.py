"""Locks on files between processes (``flock``). The kernel releases a lock when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Locks an open file, without waiting, until it is closed.

    Args:
        descriptor: The open file.
        shared: Exclude only processes that want the lock for themselves.

    Returns:
        Whether the file is locked now; False where another process has a lock that excludes this one.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_shared_lock(descriptor: int) -> None:
    """Locks an open file together with others, after waiting for a process that has it for itself.

    Raises:
        OSError: The file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_current(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class LockFile:
    """A locked file that exists only while processes have it locked.

    Attributes:
        path: The file.
        descriptor: The open file.
        shared: Whether other processes may share the lock.
        unsupported: Why the file system cannot lock, if it cannot: then the file is open and excludes no process.
    """

    path: Path
    descriptor: int
    shared: bool
    unsupported: str | None = None

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False) -> LockFile | None:
        """Creates and locks a file, without waiting.

        Returns:
            None where another process has a lock that excludes this one.

        Raises:
            OSError: The file cannot be created.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                locked = try_lock(descriptor, shared=shared)
            except OSError as error:
                return cls(path, descriptor, shared, error.strerror or str(error))
            if locked and is_current(path, descriptor):
                return cls(path, descriptor, shared)
            os.close(descriptor)
            if not locked:
                return None
            # Its last holder removed the file between the two calls.

    def write(self, text: str) -> None:
        """Replaces the content of the file, which other processes may show in messages."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)

    def release(self) -> None:
        """Unlocks the file; its last holder removes it."""
        # Removed while locked: a process that opened the file meanwhile finds that it is not current.
        if not self.shared or self._is_last_holder():
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def _is_last_holder(self) -> bool:
        try:
            return try_lock(self.descriptor)
        except OSError:
            return True  # no locks


@contextmanager
def unique_name(folder: Path, name: str) -> Iterator[str]:
    """Yields a name that no other process is given at the same time: ``name`` if it is free, else ``name-1``, ….

    Args:
        folder: Where lock files are stored. It is created if it does not exist, and removed if it is empty at the end.
        name: Of a file.

    Raises:
        OSError: A lock file cannot be created.
    """
    unique, lock = next(_free_names(folder, name))
    try:
        yield unique
    finally:
        lock.release()
        with suppress(OSError):  # the folder contains other files
            folder.rmdir()


def _free_names(folder: Path, name: str) -> Iterator[tuple[str, LockFile]]:
    for number in count():
        candidate = f"{name}-{number}" if number else name
        if lock := _acquire_in(folder, f"{candidate}.lock"):
            yield candidate, lock


def _acquire_in(folder: Path, name: str) -> LockFile | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed the folder
            return LockFile.acquire(folder / name)
