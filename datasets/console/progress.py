"""How far long work has come: a bar on a terminal, plain lines in a log. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Report = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""What `progress` is: (label, total) → a context that gives ``advance(n)``."""

_SECONDS = 10.0  # between lines, when they bring at least a tenth of the work
_PATIENCE = 60.0  # between lines of slower work


def note(text: str) -> None:
    """Says one sentence on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """``with progress("sharding market1501", total) as advance: advance(n)``.

    Args:
        label: What is being done.
        total: How much there is to do; ``advance(n)`` says that n more is done.
    """
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n: bar.advance(task, n)
        return
    lines = _Lines(label, total)
    yield lines.advance
    lines.end()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = self._said = 0
        self._start = self._last = time.monotonic()

    def advance(self, n: int) -> None:
        self._done += n
        waited = time.monotonic() - self._last
        if waited >= (_SECONDS if self._done - self._said >= self._total / 10 else _PATIENCE):
            self._say()

    def end(self) -> None:
        if self._done > self._said:
            self._say()

    def _say(self) -> None:
        self._last, self._said = time.monotonic(), self._done
        rate = self._done / max(self._last - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        share = 100 * self._done // max(self._total, 1)
        note(f"{self._label}: {self._done:,} of {self._total:,} ({share} %), {rate:,.0f}/s"
             + (f", {_duration(left)} left" if left else ""))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
