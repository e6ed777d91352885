"""Signals that stop a run so that it can be resumed: after the current step of a stage, otherwise at once.

SIGTERM (a scheduler takes the machine), SIGUSR1 (its warning before the time limit) and SIGINT (Ctrl-C) are handled as
soon as the command starts. A second Ctrl-C ends the process without a checkpoint; the other signals may be repeated.
Every Ctrl-C arrives twice: from the terminal and from the launcher.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from embae.datasets.files.json_files import format_json
from embae.trainer.errors import RunError, Stopped

RESUMABLE = 75
"""Exit code of a run that was stopped and can be resumed: EX_TEMPFAIL of sysexits.h."""
STOPPED, FAILED = "stopped", "failed"
"""Files in the run folder that say how the run ended, for launchers that turn every exit code into 1."""

SAME_CTRL_C_S = 0.3
"""Two SIGINTs within so many seconds are one Ctrl-C."""


class StopSignals:
    """The stop requests that this process has received. One object per process: signals belong to the process.

    Attributes:
        requested: Name of the first signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deferred, self._received_at = False, 0.0
        self._run: Path | None = None
        self._finish: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Handles the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def record_in(self, run: Path) -> None:
        """Names the run folder that says how the run ended."""
        self._run = run

    @contextlib.contextmanager
    def finishing(self, finish: Callable[[], None]) -> Iterator[None]:
        """Inside this context, `finish` is called before a signal ends the process: it completes what is written."""
        self._finish = finish
        try:
            yield
        finally:
            self._finish = lambda: None

    @contextlib.contextmanager
    def after_step(self) -> Iterator[None]:
        """Inside this context a signal is only recorded in `requested`; the step loop checks it between steps."""
        self._deferred = True
        try:
            yield
        except Stopped:  # the process ends with what this says: a signal that arrives now changes nothing
            raise
        except BaseException:
            self._deferred = False
            raise
        self._deferred = False
        if self.requested:
            self.exit_stopped("between two stages")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside `after_step`, around work that may be interrupted: a signal ends the process at once again."""
        self._deferred = False
        try:
            if self.requested:
                self.exit_stopped("before the scores")
            yield
        finally:
            self._deferred = True

    def _receive(self, number: int, _: object) -> None:
        now = time.monotonic()
        second = self.requested == "SIGINT" and number == signal.SIGINT and now - self._received_at > SAME_CTRL_C_S
        if not self.requested:
            self.requested, self._received_at = signal.Signals(number).name, now
        if second:
            self.exit_now()
        if not self._deferred:
            self.exit_stopped("outside of a stage's steps")

    def exit_stopped(self, where: str) -> None:
        """Ends this process with `RESUMABLE`, after finishing what is being written."""
        reason = f"{self.requested or 'a signal to another rank'} {where}"
        self._deferred = True  # a signal that arrives now changes nothing
        try:
            self._finish()
        except RunError as error:
            _print_once(f"embae: {error}")
        _print_once(f"embae: stopped by {reason}; run the same command again to resume")
        if _is_first() and not (self._run and (self._run / FAILED).exists()):
            self._record(STOPPED, reason)
        sys.stdout.flush()
        os._exit(RESUMABLE)

    def record_failure(self, reason: str) -> None:
        """Records that the run failed: launchers then stop the other ranks, which must not say that it can resume."""
        self._record(FAILED, reason)

    def exit_now(self) -> None:
        """Ends this process without a checkpoint."""
        _print_once("embae: ended at once; run the same command again to resume from the last checkpoint")
        os._exit(1)

    def _record(self, name: str, reason: str) -> None:
        if self._run and self._run.is_dir():
            # Not atomically: several ranks may write the file at the same time.
            (self._run / name).write_text(format_json({"why": reason}, indent=None) + "\n", encoding="utf-8")


def forget_end(run: Path) -> None:
    """Removes the record of how a run ended, since it continues."""
    for name in (STOPPED, FAILED):
        (run / name).unlink(missing_ok=True)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_once(text: str) -> None:
    if _is_first():
        print(f"\n{text}", file=sys.stderr, flush=True)
