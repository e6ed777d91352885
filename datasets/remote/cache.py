"""Copies of far files on this machine, whole, shared by its processes, and limited in bytes.

A file lies under its name once it is whole. While it is fetched it is called ``….part``, and whoever fetches it has
that locked; a killed process leaves a ``.part`` that the next one takes over. Whoever reads a file, or is about to, has
it open and locked with others, so that it is not removed to make room. The kernel lets go of locks however a process
ends.
"""

from __future__ import annotations

import fcntl
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

PART = ".part"
DAMAGED = 2  # times that a file which comes too short is fetched


class Cache(Strict):
    """Where copies of remote shards lie on each machine, and how many bytes of them: ``data.cache`` of a recipe."""

    folder: Path | None = None
    """By default a folder of this user in the machine's place for temporary files (``$TMPDIR``)."""
    gib: Positive = 20
    """At most so many GiB. Files that are being fetched or read stay, even if they exceed the limit."""

    @property
    def most(self) -> int:
        """Most bytes."""
        return int(self.gib * 2**30)

    @cached_property
    def _root(self) -> Path:
        root = self.folder or Path(tempfile.gettempdir()) / f"embae-cache-{os.getuid()}"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = root.stat()
        except OSError as error:
            raise DataError(f"{root}: cannot hold copies of far data ({error.strerror}); set data.cache.folder to a "
                            "folder on a disk of this machine") from error
        if not self.folder and (status.st_uid != os.getuid() or status.st_mode & 0o022 or root.is_symlink()):
            raise DataError(f"{root}: others may write there; set data.cache.folder to a folder of your own")
        return root

    def hold(self, name: str, size: int, fetch: Callable[[Path], None]) -> int:
        """Opens a copy, after fetching it if there is none; it stays while the file descriptor is open.

        Of several processes that ask, one fetches and the others wait.

        Args:
            name: What the copy is called: a folder of the cache and a name in it.
            size: Bytes that the file has at least; 0 if that is not known.
            fetch: Writes the file at a path.

        Returns:
            A file descriptor to read from.

        Raises:
            DataError: What came is shorter than `size`, twice; the cache cannot hold it, or the disk is full.
            Exception: What `fetch` raises.
        """
        path = self._root / name
        if size > self.most:
            raise DataError(f"{path}: {size:,} bytes are more than data.cache may hold ({self.gib:g} GiB); raise "
                            "data.cache.gib")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            while True:
                if (held := _open_whole(path, size)) is not None:
                    return held
                with _locked(path.with_name(path.name + PART)) as part:
                    if part is None:
                        continue
                    if path.exists():
                        path.with_name(path.name + PART).unlink()
                    else:
                        self._fetch(path, part, size, fetch)
        except OSError as error:
            raise DataError(f"{path}: cannot be written or read ({error.strerror or error}); see that the disk of "
                            "data.cache.folder has room and locks") from error

    def _fetch(self, path: Path, part: int, size: int, fetch: Callable[[Path], None]) -> None:
        partial = path.with_name(path.name + PART)
        for left in reversed(range(DAMAGED)):
            self.make_room(size)
            fetch(partial)
            found = os.fstat(part).st_size
            if found >= max(size, 1):
                break
            if not left:
                raise DataError(f"{path.name}: {found:,} bytes came, {DAMAGED} times, wanted at least "
                                f"{max(size, 1):,}; it is cut short where it comes from")
        os.replace(partial, path)
        self.make_room(0)

    def forget(self, name: str, held: int) -> None:
        """Removes a copy that turned out damaged, if it is still the one that was held."""
        path = self._root / name
        try:
            if os.path.samestat(os.stat(path), os.fstat(held)):
                path.unlink()
        except FileNotFoundError:
            pass

    def make_room(self, size: int) -> None:
        """Removes copies until so many bytes fit, those first that were opened longest ago, and none that is in use."""
        with _locked(self._root / ".lock"):
            files = []
            for path in (path for folder in self._root.iterdir() if folder.is_dir() for path in folder.iterdir()):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                # What is being fetched grows: it counts as large as what is to come.
                bytes_ = max(status.st_size, size) if path.name.endswith(PART) else status.st_size
                files.append((status.st_mtime_ns, path, bytes_))
            # The file to come has a ``.part`` by now, which counts.
            over = sum(size for _, _, size in files) - self.most
            for _, path, bytes_ in sorted(files):
                if over <= 0:
                    return
                if _removed(path):
                    over -= bytes_
        if over > 0 and not _told.intersection([self]):
            _told.add(self)
            note(f"{self._root}: what is read at a time is {over:,} bytes more than data.cache may hold "
                 f"({self.gib:g} GiB); raise data.cache.gib, or set data.window of the stages")


_told: set[Cache] = set()


def _open_whole(path: Path, size: int) -> int | None:
    """The file, locked against removal, and marked as used now; None if it is not there."""
    while True:
        try:
            held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        fcntl.flock(held, fcntl.LOCK_SH)
        status = os.fstat(held)
        if status.st_nlink and status.st_size >= size:
            os.utime(held)
            return held
        if status.st_nlink:  # a crash of the machine may have cut it
            path.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Holds a file alone, made if it is missing; None if another process renamed or removed it meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while _same(path, descriptor):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)  # not in flock: once it is renamed, readers hold it for as long as they like
        yield descriptor if _same(path, descriptor) else None
    finally:
        os.close(descriptor)


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Removes a file that nobody holds."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(path, descriptor):
            path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
