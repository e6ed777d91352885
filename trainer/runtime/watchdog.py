"""Ends a rank that waits for another rank that is dead or hangs, and names that rank.

A process group that waits reports neither how long it has waited nor for which rank. Every rank therefore publishes its
progress every few seconds through the store that the ranks met at. A rank without progress reads what the others
published last.
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


class Watchdog:
    """Watches the other ranks for this one. Does nothing until `start`."""

    def __init__(self) -> None:
        self._where, self._count, self._stepping = "starting", 0, False
        self._progress_at = time.monotonic()
        self._reports: dict[int, tuple[dict[str, Any], float]] = {}
        self._published_at = time.monotonic()

    def start(self, store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
        """Starts to watch.

        Args:
            store: Shared by all ranks.
            rank: This rank.
            world_size: Number of ranks.
            timeout_s: How long a rank may be silent, and how long the slowest rank may take for a training step.
        """
        # A separate client: while one client waits for a key, it serves no other request.
        self._store, self._rank, self._size, self._timeout = store.clone(), rank, world_size, timeout_s
        self._progress_at = self._published_at = time.monotonic()
        for loop in (self._publish, self._check):
            threading.Thread(target=loop, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def expect_steps(self) -> Iterator[None]:
        """Inside this context every rank is expected to make progress, step by step."""
        self.report(self._where)
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    @contextlib.contextmanager
    def expect_pause(self) -> Iterator[None]:
        """Inside `expect_steps`, around work that may take long."""
        self._stepping = False
        try:
            yield
        finally:
            self.report(self._where)
            self._stepping = True

    def report(self, where: str) -> None:
        """Records that this rank has made progress.

        Args:
            where: What the other ranks report of this one: stage and step.
        """
        self._where, self._count, self._progress_at = where, self._count + 1, time.monotonic()

    @property
    def _pause_s(self) -> float:
        return min(5.0, self._timeout / 6)

    def _publish(self) -> None:
        """Publishes this rank's progress, and reads that of the others."""
        beat = 0
        while True:
            beat += 1
            report = {"beat": beat, "count": self._count, "where": self._where, "pid": os.getpid(),
                      "node": os.uname().nodename}
            try:
                self._store.set(f"watch/{self._rank}", json.dumps(report))
                if time.monotonic() - self._progress_at > self._timeout / 3:  # only a waiting rank reads: may be many
                    self._read_reports()
                self._published_at = time.monotonic()
            except Exception:  # the store dies with the process that holds it, and raises many kinds of errors
                pass  # `_reason` sees that nothing was published
            time.sleep(self._pause_s)

    def _read_reports(self) -> None:
        for other in range(self._size):
            key = f"watch/{other}"
            if other != self._rank and self._store.check([key]):
                report = json.loads(self._store.get(key))
                if other not in self._reports or self._reports[other][0]["beat"] != report["beat"]:
                    self._reports[other] = report, time.monotonic()

    def _check(self) -> None:
        while True:
            time.sleep(self._pause_s)
            now = time.monotonic()
            if now - self._progress_at > self._timeout and (reason := self._reason(now)):
                print(f"embae: rank {self._rank} ({self._where}) has waited for {now - self._progress_at:.0f} s. "
                      f"{reason} Run the same command again to resume from the last checkpoint.",
                      file=sys.stderr, flush=True)
                self._end_agent(now)
                os._exit(1)

    def _end_agent(self, now: float) -> None:
        """Ends torchrun's agent together with this rank if the store is lost and no rank will be restarted.

        The agent does not see that the rank ends: it waits inside its own store, which is mostly on the lost node too,
        and (measured) returns neither within minutes nor on SIGTERM.
        """
        if now - self._published_at > self._timeout / 2 and os.environ.get("TORCHELASTIC_MAX_RESTARTS") == "0":
            os.kill(os.getppid(), signal.SIGKILL)

    def _reason(self, now: float) -> str | None:
        """Why this rank makes no progress, in a sentence; None if it may continue to wait."""
        if now - self._published_at > self._timeout / 2:  # then no report was read either
            return "The store that the ranks met at does not answer: its node has failed, or the network to it."
        silent = [f"{_describe(other, report)} last reported {now - at:.0f} s ago" for other, (report, at) in
                  sorted(self._reports.items()) if now - at > self._timeout / 2]
        if silent:
            return f"{'; '.join(silent)}: dead, or cut off."
        if not self._stepping or not self._reports:
            return None
        behind = min(report["count"] for report, _ in self._reports.values())
        if behind > self._count:
            return "The other ranks are ahead: this rank hangs."
        slow = [_describe(other, report) for other, (report, _) in sorted(self._reports.items())
                if report["count"] == behind]
        return f"All ranks answer, and none makes progress; furthest behind: {', '.join(slow[:5])}."


def _describe(rank: int, report: dict[str, Any]) -> str:
    return f"rank {rank} (process {report['pid']} on {report['node']}, {report['where']})"
