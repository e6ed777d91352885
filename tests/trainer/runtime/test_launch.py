"""Ranks end together, with the right exit code, and none outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import embae.trainer
from embae.trainer.runtime.launch import launch

pytestmark = pytest.mark.ranks

# Stands in for `python -m embae.trainer`: each argument is a line of Python.
WORKER = """
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
here = Path(os.environ["NOTES"]) / f"rank-{rank}"
here.with_suffix(".partial").write_text(str(os.getpid()))
here.with_suffix(".partial").rename(here)
for line in sys.argv[1:]:
    exec(line)
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers write their process ids; their `embae.trainer` is the real one but for `__main__`."""
    package = tmp_path / "path" / "embae" / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(next(iter(embae.trainer.__path__)))!r})\n")
    (package / "__main__.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("NOTES", str(tmp_path))
    return tmp_path


def _pids(notes: Path, count: int) -> list[int]:
    _until(lambda: len(list(notes.glob("rank-?"))) == count)
    return [int((notes / f"rank-{rank}").read_text()) for rank in range(count)]


def _alive(pid: int) -> bool:
    """Not a zombie either: process 1 may reap late."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def launcher(notes: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `launch` in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*lines: str) -> subprocess.Popen[bytes]:
        code = textwrap.dedent("""
            import sys
            from embae.trainer.runtime.launch import launch
            sys.exit(launch(sys.argv[1:], 2))
        """)
        started.append(subprocess.Popen([sys.executable, "-c", code, *lines]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for rank in notes.glob("rank-?"):
        if _alive(int(rank.read_text())):
            os.kill(int(rank.read_text()), signal.SIGKILL)


def test_all_well(notes: Path) -> None:
    assert launch(["assert os.environ['WORLD_SIZE'] == os.environ['LOCAL_WORLD_SIZE'] == '3'"], 3) == 0
    assert len(set(_pids(notes, 3))) == 3


@pytest.mark.parametrize(("line", "code"), [("sys.exit(2)", 2), ("sys.exit(75)", 75), ("os.kill(os.getpid(), 9)", 1)])
def test_a_rank_that_fails_ends_the_others(notes: Path, line: str, code: int) -> None:
    started = time.monotonic()
    assert launch([f"{line} if rank == 1 else time.sleep(600)"], 2) == code
    assert time.monotonic() - started < 60
    assert not any(map(_alive, _pids(notes, 2)))


def test_the_reason_counts_not_those_who_fell_with_it(notes: Path) -> None:
    assert launch(["sys.exit(2 if rank == 1 else 1)"], 2) == 2


def test_a_rank_that_will_not_end_is_killed(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embae.trainer.runtime import launch as module

    monkeypatch.setattr(module, "GRACE_S", 0.5)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    line = "(time.sleep(1), sys.exit(1)) if rank == 1 else time.sleep(600)"
    assert launch([deaf, line], 2) == 1
    assert not any(map(_alive, _pids(notes, 2)))


def test_a_signal_to_the_launcher_reaches_every_rank(
    notes: Path, launcher: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = launcher(
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))",
        "Path(f'{here}-ready').touch()",
        "[time.sleep(0.1) for _ in range(6000)]",
    )
    _until(lambda: len(list(notes.glob("rank-?-ready"))) == 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert not any(map(_alive, _pids(notes, 2)))


def test_a_signal_that_comes_before_the_ranks_listen_stops_the_run_too(
    notes: Path, launcher: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = launcher("signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)) if rank else None", "time.sleep(600)")
    pids = _pids(notes, 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75
    assert not any(map(_alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_a_killed_launcher_takes_its_ranks_along(notes: Path, launcher: Callable[..., subprocess.Popen[bytes]]) -> None:
    """One rank has joined; the other comes to it only after the launcher's death."""
    process = launcher(
        "(Path(f'{here}-waits').touch(), time.sleep(2)) if rank else None",
        "from embae.trainer.runtime.distributed import _die_with_parent; _die_with_parent()",
        "Path(f'{here}-joined').touch(); time.sleep(600)",
    )
    pids = _pids(notes, 2)
    _until(lambda: (notes / "rank-0-joined").exists() and (notes / "rank-1-waits").exists())
    early = (notes / "rank-1-joined").exists()
    process.kill()
    process.wait()
    _until(lambda: not any(map(_alive, pids)))
    assert early or not (notes / "rank-1-joined").exists()
