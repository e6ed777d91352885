"""Local copies of remote files: complete, shared by the processes of this machine, and limited in bytes.

A copy has its name once it is complete. While it is downloaded it is called ``….part``, and the process that downloads
it has that file locked; after a process was killed, the next one takes over its ``.part``. A process that reads a copy,
or is about to, has it open with a shared lock, so that it is not removed to make room. The kernel releases locks when
their process ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.fields import Positive, Strict
from embae.datasets.files.locks import is_current, try_lock, wait_for_shared_lock

PART = ".part"
DOWNLOADS = 2  # attempts to download a file that arrives too short


class Cache(Strict):
    """Where copies of remote shards lie on each machine, and how many bytes of them: ``data.cache`` of a recipe."""

    folder: Path | None = None
    """By default a folder of this user in the machine's place for temporary files (``$TMPDIR``)."""
    gib: Positive = 20
    """At most so many GiB. Files that are being fetched or read stay, even if they exceed the limit."""

    @property
    def max_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.gib * 2**30)

    @cached_property
    def _root(self) -> Path:
        root = self.folder or Path(tempfile.gettempdir()) / f"embae-cache-{os.getuid()}"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = root.stat()
        except OSError as error:
            raise DataError(f"{root}: cannot store copies of remote data ({error.strerror}); set data.cache.folder to "
                            "a folder on a disk of this machine") from error
        if not self.folder and (status.st_uid != os.getuid() or status.st_mode & 0o022 or root.is_symlink()):
            raise DataError(f"{root}: others may write there; set data.cache.folder to a folder of your own")
        return root

    @cached_property
    def _printed_notes(self) -> list[str]:
        """Notes of this process, so that each is printed once."""
        return []

    def open_copy(self, name: str, size: int, download: Callable[[Path], None]) -> int:
        """Opens a copy, after downloading it if it does not exist. It is not removed while it is open.

        Of several processes that open the same copy, one downloads it and the others wait.

        Args:
            name: Name of the copy: a folder of the cache and a file in it.
            size: The least number of bytes that the file has; 0 if that is not known.
            download: Writes the file to a path.

        Returns:
            A file descriptor for reading.

        Raises:
            DataError: The download is shorter than ``size`` twice, the file does not fit into the cache, or the disk is
                full.
            Exception: What ``download`` raises.
        """
        path = self._root / name
        if size > self.max_bytes:
            raise DataError(f"{path}: {size:,} bytes are more than data.cache may hold ({self.gib:g} GiB); raise "
                            "data.cache.gib")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            while True:
                if (descriptor := _open_complete(path, size)) is not None:
                    return descriptor
                with _locked(path.with_name(path.name + PART)) as part:
                    if part is None:
                        continue
                    if path.exists():
                        path.with_name(path.name + PART).unlink()
                    else:
                        self._download(path, part, size, download)
        except OSError as error:
            raise DataError(f"{path}: cannot be written or read ({error.strerror or error}); check that the disk of "
                            "data.cache.folder has space and supports locks") from error

    def _download(self, path: Path, part: int, size: int, download: Callable[[Path], None]) -> None:
        partial = path.with_name(path.name + PART)
        for attempts_left in reversed(range(DOWNLOADS)):
            self._make_room(size)
            download(partial)
            received = os.fstat(part).st_size
            if received >= max(size, 1):
                break
            if not attempts_left:
                raise DataError(f"{path.name}: {received:,} bytes arrived, {DOWNLOADS} times, expected at least "
                                f"{max(size, 1):,}; the file is cut short at its source")
        os.replace(partial, path)
        self._make_room(0)

    def discard(self, name: str, descriptor: int) -> None:
        """Removes a damaged copy, unless another process has replaced the one that is open here."""
        path = self._root / name
        if is_current(path, descriptor):
            path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes copies until ``size`` bytes fit: the least recently opened first, and none that is in use."""
        with _locked(self._root / ".lock"):
            files = []
            for path in (path for folder in self._root.iterdir() if folder.is_dir() for path in folder.iterdir()):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                # A download grows: it counts with its final size.
                file_bytes = max(status.st_size, size) if path.name.endswith(PART) else status.st_size
                files.append((status.st_mtime_ns, path, file_bytes))
            # The file to make room for has a ``.part`` already, which is counted.
            excess = sum(file_bytes for _, _, file_bytes in files) - self.max_bytes
            for _, path, file_bytes in sorted(files):
                if excess <= 0:
                    return
                if _remove_unused(path):
                    excess -= file_bytes
        if excess > 0 and not self._printed_notes:
            text = (f"{self._root}: the files that are read at the same time have {excess:,} bytes more than "
                    f"data.cache may hold ({self.gib:g} GiB); raise data.cache.gib, or set data.window of the stages")
            self._printed_notes.append(text)
            note(text)


def _open_complete(path: Path, size: int) -> int | None:
    """Opens a copy with a shared lock and updates its time of use; None if there is no copy."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        wait_for_shared_lock(descriptor)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size >= size:
            os.utime(descriptor)
            return descriptor
        if status.st_nlink:  # cut short, perhaps by a crash of the machine
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Creates a file if it is missing and locks it; None if another process renamed or removed it while this waited."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # Polls instead of waiting in flock: once the file is renamed, readers lock it for as long as they like.
        while is_current(path, descriptor) and not try_lock(descriptor):
            time.sleep(0.01)
        yield descriptor if is_current(path, descriptor) else None
    finally:
        os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    """Removes a file unless a process has it locked; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(descriptor):
            return False
        if is_current(path, descriptor):
            path.unlink()
        return True
    finally:
        os.close(descriptor)
