"""Which shard is written next, where several machines may write shards of one dataset into a folder that they share.

A shard's bytes follow from the plan, and a shard is renamed into place when it is whole: two writers of the same one
waste time and do no harm. So nothing here has to be right for the result to be right, and no locks are used, which
network file systems keep unreliably, nor clocks, which differ. A claim is a file that only one process can create
(O_EXCL, which holds on NFS too). It says that a process began, and is never withdrawn. A shard that is claimed and does
not come, because its writer has died or is slow, is written once more by a machine that has nothing else to do.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from embae.datasets.index.card import CARD

CLAIM = ".claim"
PATIENCE_S = 5.0  # seconds to wait for a shard of another machine, before one of our own shows how long a shard takes


class ShardQueue:
    """The shards that are not finished.

    Args:
        folder: Where shards, parts and claims lie.
        stems: Names of the shards to write, without ``.tar``.
        is_done: Whether a shard is finished.
        shared: Other machines write shards of the same set. Each starts at another place, so that few claims collide.

    Attributes:
        elsewhere: Shards that others have finished.
    """

    def __init__(self, folder: Path, stems: Iterable[str], is_done: Callable[[str], bool], shared: bool) -> None:
        self._folder, self._is_done = folder, is_done
        self._free = deque(stems)
        if shared and self._free:
            self._free.rotate(secrets.randbelow(len(self._free)))
        self._theirs: dict[str, float] = {}  # claimed by others → since when we know
        self._ours: dict[str, float] = {}  # being written here → since when
        self._longest = 0.0  # seconds that a shard took here
        self.elsewhere: list[str] = []

    def next(self) -> str | None:
        """A shard to write now; None if there is none, for now or at all."""
        if not self._folder.exists() or (self._folder / CARD).exists():  # another machine found all shards finished
            self._free.clear()
            self._theirs.clear()
        stem = self._unclaimed() or self._overdue()
        if stem:
            self._ours[stem] = time.monotonic()
        return stem

    def written(self, stem: str) -> None:
        """Marks a shard that `next` returned as written."""
        self._longest = max(self._longest, time.monotonic() - self._ours.pop(stem))

    @property
    def waiting(self) -> bool:
        """Whether there are shards that are not finished, and not being written here."""
        return bool(self._free or self._theirs)

    def _unclaimed(self) -> str | None:
        while self._free:
            stem = self._free.popleft()
            try:
                descriptor = os.open(self._folder / (stem + CLAIM), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._theirs[stem] = time.monotonic()
                continue
            except FileNotFoundError:  # the folder was renamed in this moment
                return None
            os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())  # for people
            os.close(descriptor)
            return stem
        return None

    def _overdue(self) -> str | None:
        done = [stem for stem in self._theirs if self._is_done(stem)]
        for stem in done:
            del self._theirs[stem]
        self.elsewhere += done
        patience = 1.5 * self._longest or PATIENCE_S
        overdue = [stem for stem, since in self._theirs.items() if time.monotonic() - since > patience]
        if not overdue:
            return None
        stem = secrets.choice(overdue)  # by chance, so that those who wait do not all begin the same one
        del self._theirs[stem]
        return stem
