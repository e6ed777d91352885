"""Damage of files and trees, and what may come of it: it works, or it is refused by a sentence that names the place.

Anything else fails the test that asked: another exception, a refusal that names nothing, more than `LIMIT_S` seconds,
the end of the interpreter. Inputs are the same in every run; ``EMBAE_FUZZ=10000`` tries so many for each test.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from embae.datasets.errors import DataError
from embae.trainer.errors import RecipeError, RunError, WeightsError

REFUSALS = (DataError, RecipeError, WeightsError, RunError)
LIMIT_S = 5.0


def inputs(count: int) -> settings:
    """So many inputs for a test, or as many as ``EMBAE_FUZZ`` says."""
    asked = int(os.environ.get("EMBAE_FUZZ", "0"))
    return settings(max_examples=asked or count, derandomize=True, database=None, deadline=None, print_blob=False,
                    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if asked else [])],
                    suppress_health_check=list(HealthCheck))


class Hang(BaseException):
    """Not an `Exception`: nothing that is tested may take it for one of its own."""


@contextmanager
def works_or_refuses(*names: object, only: tuple[type[Exception], ...] = REFUSALS) -> Iterator[list[Exception]]:
    """Lets pass what works and what is refused with one of `names` in the message; gives a list for the refusal."""

    def stop(*_: object) -> None:
        raise Hang(f"took more than {LIMIT_S:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    faulthandler.dump_traceback_later(6 * LIMIT_S, exit=True)  # where no signal gets through
    refusals: list[Exception] = []
    try:
        yield refusals
    except only as error:
        assert any(str(name) in str(error) for name in names), f"names none of {names}: {error}"
        refusals.append(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer)
        signal.signal(signal.SIGALRM, before)
        if not outer:
            faulthandler.cancel_dump_traceback_later()


# Bytes.

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
_EDITS = ("bit", "byte", "number", "cut", "drop", "repeat", "insert", "zero")

edits = st.lists(st.tuples(st.sampled_from(_EDITS), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
                 min_size=1, max_size=6)
"""What to do to a file's bytes; see `damaged`."""


def damaged(data: bytes, changes: Sequence[tuple[str, int, int]], within: range | None = None) -> bytes:
    """Bytes with each change made in turn.

    Args:
        data: The bytes.
        changes: (what, where, with which value).
        within: Where changes begin; by default anywhere.
    """
    out = bytearray(data)
    for what, place, value in changes:
        if not out:
            break
        start, stop = (within.start, min(within.stop, len(out))) if within else (0, len(out))
        at = start + place % max(1, stop - start)
        length = 1 + value % 64
        if what == "bit":
            out[min(at, len(out) - 1)] ^= 1 << value % 8
        elif what == "byte":
            out[min(at, len(out) - 1)] = value % 256
        elif what == "number":
            width = (1, 2, 4, 8)[value % 4]
            number = _NUMBERS[value // 4 % len(_NUMBERS)] % 256**width
            out[at : at + width] = number.to_bytes(width, ("little", "big")[value // 64 % 2])
        elif what == "cut":
            del out[at:]
        elif what == "drop":
            del out[at : at + length]
        elif what == "repeat":
            out[at:at] = out[at : at + length] * (1 + value // 64 % 40)
        elif what == "insert":
            out[at:at] = value.to_bytes(4, "big")[: 1 + value % 4]
        else:
            out[at : at + length] = bytes(len(out[at : at + length]))
    return bytes(out)


# Trees of mappings, lists and values, as JSON and YAML have them.

DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e300, 5e-324, float("inf"), float("nan"),
    "", "x", "\0", "\ud800", "1", "null", "../../etc/passwd", "/etc/passwd", "pipe:touch gone", "http://127.0.0.1:9/x",
    "s3://bucket/x", "hf-hub:timm/none", "local-dir:/tmp", "x" * 5000, "name.with.dots", "a\nb",
    [], {}, [[]], [1, 2], [1.5, None], ["x"], {"x": 1}, {"": {}}, {"a.b": [1]}, DEEP, [0] * 3000, "target", "train",
    "frozen", "random", "hub", [256, 128], {"format": 1},
]  # fmt: skip

tree_edits = st.lists(st.tuples(st.sampled_from(("set", "drop", "add", "nest", "swap")), st.integers(0, 2**32 - 1),
                                st.integers(0, len(HOSTILE) - 1)), min_size=1, max_size=4)
"""What to do to a tree; see `bent`."""


def bent(tree: Any, changes: Sequence[tuple[str, int, int]]) -> Any:
    """A copy of a tree with each change made in turn, at one of its values."""
    tree = _copy(tree)
    for what, place, which in changes:
        places = list(_places(tree))
        if not places:
            return _copy(HOSTILE[which])
        holder, key = places[place % len(places)]
        value = _copy(HOSTILE[which])
        if what == "drop":
            del holder[key]
        elif what == "nest":
            holder[key] = [holder[key]] if which % 2 else {"x": holder[key]}
        elif what == "swap":
            other, there = places[(place // 65536) % len(places)]
            holder[key] = _copy(other[there])
        elif what == "add" and isinstance(holder, dict):
            holder[value if isinstance(value, str) else "more"] = value
        elif what == "add":
            holder.insert(key, value)
        else:
            holder[key] = value
    return tree


def _places(tree: Any, left: int = 60) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:200]:
        yield tree, key
        if left:
            yield from _places(value, left - 1)


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


# Files where other things are wanted.

def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nothing(path: Path) -> None:
    del path


def empty(path: Path) -> None:
    path.touch()


def huge(path: Path) -> None:
    """A terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(2**40)


ODD: list[Callable[[Path], None]] = [a_folder, a_pipe, a_loop, endless, nothing, empty, huge]
"""What may lie where a file is wanted."""


@contextmanager
def replaced(path: Path, content: bytes | Callable[[Path], None]) -> Iterator[None]:
    """A file with other content, or something else in its place, for a while."""
    aside = path.with_name(f".{path.name}.aside")
    path.rename(aside)
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        aside.rename(path)


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
