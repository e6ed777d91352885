"""Ends a rank that waits for another one which is dead or hangs, and says which.

A process group that waits says neither for how long nor for whom. Every rank says every few seconds, through the store
that the ranks met at, where it is; one that gets nowhere looks at what the others said last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist


class Watch:
    """A rank's eye on the others. Does nothing until `start`."""

    def __init__(self) -> None:
        self._where, self._count, self._stepping = "starting", 0, False
        self._moved = time.monotonic()
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}
        self._told = time.monotonic()

    def start(self, store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
        """Begins to watch.

        Args:
            store: Which all ranks see.
            rank: This one.
            world_size: Number of ranks.
            timeout_s: How long a rank may be silent, or the slowest of a stage's loop may take for a step.
        """
        # A client of its own: one that waits for a key lets nobody else ask meanwhile.
        self._store, self._rank, self._size, self._timeout = store.clone(), rank, world_size, timeout_s
        self._moved = self._told = time.monotonic()
        for act in (self._tell, self._look):
            threading.Thread(target=act, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """Within it every rank is expected to get on, step by step."""
        self.seen(self._where)
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within `steps`, for what may take its time."""
        self._stepping = False
        try:
            yield
        finally:
            self.seen(self._where)
            self._stepping = True

    def seen(self, where: str) -> None:
        """This rank has got on.

        Args:
            where: What to tell the others: stage and step.
        """
        self._where, self._count, self._moved = where, self._count + 1, time.monotonic()

    @property
    def _pause(self) -> float:
        return min(5.0, self._timeout / 6)

    def _tell(self) -> None:
        """Says where this rank is, and hears where the others are."""
        beat = 0
        while True:
            beat += 1
            said = {"beat": beat, "count": self._count, "where": self._where, "pid": os.getpid(),
                    "node": os.uname().nodename}
            try:
                self._store.set(f"watch/{self._rank}", json.dumps(said))
                if time.monotonic() - self._moved > self._timeout / 3:  # only who waits asks: there may be many ranks
                    self._ask()
                self._told = time.monotonic()
            except Exception:  # the store goes with the process that holds it, and has many ways to say so
                pass  # `_why` sees that nothing was told any more
            time.sleep(self._pause)

    def _ask(self) -> None:
        for other in range(self._size):
            key = f"watch/{other}"
            if other != self._rank and self._store.check([key]):
                told = json.loads(self._store.get(key))
                if other not in self._heard or self._heard[other][0]["beat"] != told["beat"]:
                    self._heard[other] = told, time.monotonic()

    def _look(self) -> None:
        while True:
            time.sleep(self._pause)
            now = time.monotonic()
            if now - self._moved > self._timeout and (why := self._why(now)):
                print(f"embae: rank {self._rank} ({self._where}) has waited for {now - self._moved:.0f} s. {why} "
                      "The same command goes on from the last checkpoint.", file=sys.stderr, flush=True)
                self._end_agent(now)
                os._exit(1)

    def _end_agent(self, now: float) -> None:
        """Ends torchrun's agent with this rank, where the store is gone and no rank is started again.

        The agent does not see that the rank ends: it is inside its own store, which is mostly on that node too, and
        (measured) comes back neither within minutes nor for SIGTERM.
        """
        if now - self._told > self._timeout / 2 and os.environ.get("TORCHELASTIC_MAX_RESTARTS") == "0":
            os.kill(os.getppid(), signal.SIGKILL)

    def _why(self, now: float) -> str | None:
        """Whom this rank waits for in vain, in a sentence; None where it may wait on."""
        if now - self._told > self._timeout / 2:  # then nobody has been heard, for all that they say
            return "The store that the ranks met at does not answer: its node is gone, or cut off."
        silent = [f"{_name(other, told)} was last heard {now - at:.0f} s ago" for other, (told, at) in
                  sorted(self._heard.items()) if now - at > self._timeout / 2]
        if silent:
            return f"{'; '.join(silent)}: dead, or cut off."
        if not self._stepping or not self._heard:
            return None
        behind = min(told["count"] for told, _ in self._heard.values())
        if behind > self._count:
            return "The others have got further: it is this one that hangs."
        slow = [_name(other, told) for other, (told, _) in sorted(self._heard.items()) if told["count"] == behind]
        return f"All answer, and none gets on; the furthest behind: {', '.join(slow[:5])}."


def _name(rank: int, told: dict[str, Any]) -> str:
    return f"rank {rank} (process {told['pid']} on {told['node']}, {told['where']})"


watch = Watch()
"""Ranks are processes, so there is one for all."""
