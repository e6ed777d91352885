"""Signals that end a run so that it can go on: after the current step in a stage's loop, else at once.

SIGTERM (a scheduler takes the machine), SIGUSR1 (its warning before the time limit) and SIGINT (Ctrl-C) are heard as
soon as the command starts. A second Ctrl-C ends the process without a checkpoint; the others may come again and again.
Every Ctrl-C comes twice: from the terminal and from the launcher.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from embae.trainer.errors import RunError

AGAIN = 75
"""Exit code of a run that was stopped and can go on; EX_TEMPFAIL of sysexits.h."""
MARK, FAILED = "stopped", "failed"
"""Files in the run folder that say the same as the exit code, for launchers that turn every code into 1."""

ONCE = 0.3
"""Seconds within which SIGINT twice is one Ctrl-C."""


class Stopping:
    """What signals have asked of this process.

    Attributes:
        asked: Name of the first signal that came; None as long as none has.
        before_end: Called before the process ends by itself, to finish what is being written.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.before_end: Callable[[], None] = lambda: None
        self._later, self._since = False, 0.0
        self._run: Path | None = None
        self._first = os.environ.get("RANK", "0") == "0"

    def listen(self) -> None:
        """Takes the signals over from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._hear)

    def of(self, run: Path) -> None:
        """Says which run folder this process works on."""
        self._run = run

    @contextlib.contextmanager
    def after_step(self) -> Iterator[None]:
        """Within it a signal is only kept in `asked`: who loops looks at it between steps."""
        self._later = True
        try:
            yield
        finally:
            self._later = False
        if self.asked:
            self.end("between two stages")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `after_step`, for what may be broken off: a signal ends the process at once again."""
        self._later = False
        try:
            if self.asked:
                self.end("before the scores")
            yield
        finally:
            self._later = True

    def _hear(self, number: int, _: object) -> None:
        now = time.monotonic()
        again = self.asked == "SIGINT" and number == signal.SIGINT and now - self._since > ONCE
        if not self.asked:
            self.asked, self._since = signal.Signals(number).name, now
        if again:
            self.cut()
        if not self._later:
            self.end("outside of a stage's steps")

    def end(self, where: str) -> None:
        """Ends this process so that the same command goes on."""
        why = f"{self.asked or 'a signal to another rank'} {where}"
        self._later = True  # a signal that comes now changes nothing
        try:
            self.before_end()
        except RunError as error:
            self._say(f"embae: {error}")
        self._say(f"embae: stopped by {why}; the same command goes on")
        if self._first and not (self._run and (self._run / FAILED).exists()):
            self._leave(MARK, why)
        sys.stdout.flush()
        os._exit(AGAIN)

    def fail(self, why: str) -> None:
        """Leaves word that the run failed: launchers then stop other ranks, which must not say that it can go on."""
        self._leave(FAILED, why)

    def _leave(self, name: str, why: str) -> None:
        if self._run and self._run.is_dir():
            (self._run / name).write_text(json.dumps({"why": why}) + "\n", encoding="utf-8")

    def cut(self) -> None:
        """Ends this process without a checkpoint."""
        self._say("embae: ended at once; the same command goes on from the last checkpoint")
        os._exit(1)

    def _say(self, text: str) -> None:
        if self._first:
            print(f"\n{text}", file=sys.stderr, flush=True)


def unmark(run: Path) -> None:
    """Takes back the word of how a run ended: it goes on."""
    for name in (MARK, FAILED):
        (run / name).unlink(missing_ok=True)


stopping = Stopping()
"""Signals are a process's, so there is one for all."""
