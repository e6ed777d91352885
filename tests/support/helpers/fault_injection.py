"""Bad luck at chosen moments of a real run: a signal to one of its processes just before it touches a certain file.

`hook/sitecustomize.py`, which this module writes, is imported by every Python that has its folder on PYTHONPATH. In the
ranks of a run it counts what they do to files (each `open`, `mkdir`, `rename` and `remove` raises one of Python's audit
events, before it takes place) and sends a signal at the one that was asked for. So a moment is named by what the run
does, and not by how busy the machine is.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 150  # seconds for any start, on a machine that does much else

_HOOK = '''
import json, os, re, signal, sys, threading, time

asked = json.loads(os.environ.get("EMBAE_FAULT", "{}"))
if asked and "embae.trainer" in sys.orig_argv and "RANK" in os.environ:
    own, seen, log = int(os.environ["RANK"]), 0, os.environ.get("EMBAE_EVENTS")
    wanted = re.compile(asked["at"])

    def children():
        with open(f"/proc/{os.getppid()}/task/{os.getppid()}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def strike():
        time.sleep(asked["delay"])
        with open(os.environ["FAULT_STRUCK"], "w") as file:
            file.write(str(time.time()))
        whom = {"self": [os.getpid()], "launcher": [os.getppid()], "all": [os.getppid(), *children()],
                "other": [pid for pid in children() if pid != os.getpid()][:1]}[asked["to"]]
        for again in range(asked["times"]):
            for pid in whom:
                os.kill(pid, asked["signal"])
            time.sleep(0.001)

    def hear(event, values):
        global seen
        if event == "open":
            if not isinstance(values[0], (str, bytes)):
                return
            kind = "write" if values[2] & (os.O_WRONLY | os.O_RDWR) else "read"
        elif event in ("os.mkdir", "os.rename", "os.remove"):
            kind = event[3:]
        else:
            return
        said = f"{kind} {os.fsdecode(values[0])}"
        if seen is None or not wanted.search(said) or said.endswith("events.log"):
            return
        seen += 1
        if log and own == asked["rank"]:
            with open(log, "a") as file:
                file.write(said + "\\n")
        if own == asked["rank"] and seen == asked["nth"]:
            seen = None
            if asked["delay"]:
                threading.Thread(target=strike, daemon=True).start()
            else:
                strike()

    sys.addaudithook(hear)
'''


@dataclass(frozen=True)
class Fault:
    """A signal at a moment.

    Attributes:
        at: Regular expression for what a rank is about to do: ``write PATH``, ``read PATH``, ``mkdir PATH``,
            ``rename PATH`` or ``remove PATH``.
        nth: Which of those.
        rank: The rank whose doings count.
        to: Who gets it: ``self`` (that rank), ``other`` (another one), ``launcher`` or ``all``.
        signal: Its number.
        times: How often it is sent.
        delay: Seconds after the moment.
    """

    at: str
    nth: int = 1
    rank: int = 0
    to: str = "self"
    signal: int = signal.SIGKILL
    times: int = 1
    delay: float = 0.0


@dataclass
class Ended:
    """How a start ended.

    Attributes:
        code: Exit code of the launcher.
        out: What it and its ranks said.
        err: Likewise, on stderr.
        token: What all its processes carry in their environment.
        after: Seconds from the moment that was asked for to the launcher's end; None if it did not come.
        seconds: How long it took.
    """

    code: int
    out: str
    err: str
    token: str
    after: float | None
    seconds: float


class Command:
    """A command of a user, started again and again.

    Args:
        words: What stands after ``embae``.
        cwd: Where.
        notes: A folder for its output.
    """

    def __init__(self, *words: object, cwd: Path, notes: Path):
        self._words, self._cwd, self._notes = [str(word) for word in words], cwd, notes
        hook = notes / "hook"
        hook.mkdir(parents=True, exist_ok=True)
        (hook / "sitecustomize.py").write_text(_HOOK)

    @contextmanager
    def running(self, fault: Fault | None = None, *more: object, log: Path | None = None,
                **limits: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """The process of the launcher, and the token of this start; neither it nor its ranks outlive the block."""
        token = uuid.uuid4().hex
        path = f"{self._notes / 'hook'}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT_TOKEN": token,
                       "FAULT_STRUCK": str(self._notes / f"{token}.struck"), "PYTHONPATH": path}
        if fault or log:
            environment["EMBAE_FAULT"] = json.dumps(asdict(fault or Fault("$", nth=0)))
        if log:
            environment["EMBAE_EVENTS"] = str(log)
        command = [
            sys.executable,
            "-c",
            "from embae.trainer.commands.app import main; main()",
            *self._words,
            *map(str, more),
        ]
        with (self._notes / f"{token}.out").open("wb") as out, (self._notes / f"{token}.err").open("wb") as err:
            process = subprocess.Popen(command, cwd=self._cwd, env=environment, stdout=out, stderr=err,
                                       start_new_session=True, **limits)
        try:
            yield process, token
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pid in carrying(token):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def said(self, token: str) -> tuple[str, str]:
        """What a start has printed so far, and on stderr."""
        return tuple((self._notes / f"{token}.{end}").read_text(errors="replace") for end in ("out", "err"))  # type: ignore[return-value]

    def start(self, fault: Fault | None = None, *more: object, timeout: float = TIMEOUT, **options: Any) -> Ended:
        """Runs it to its end; a hang is an error."""
        began = time.monotonic()
        with self.running(fault, *more, **options) as (process, token):
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise AssertionError("\n".join(["it hangs", *self.said(token)])) from None
            took, now, struck = time.monotonic() - began, time.time(), self._notes / f"{token}.struck"
            after = now - float(struck.read_text()) if struck.exists() else None
            orphans = _gone(token)
        assert not orphans, f"processes {orphans} outlive their launcher: {self.said(token)}"
        return Ended(code, *self.said(token), token, after, took)


def carrying(token: str) -> list[int]:
    """Living processes with this token in their environment, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if token.encode() in (entry / "environ").read_bytes() and \
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _gone(token: str, within_s: float = 20) -> list[int]:
    """What is left of a start a while after its launcher has ended."""
    deadline = time.monotonic() + within_s
    while (left := carrying(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def exports(run: Path) -> dict[str, str]:
    """Hash of every file of every stage's export."""
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.glob("*/export/*"))}


def records(run: Path, kind: str = "train") -> list[tuple[str, int, float]]:
    """Stage, step and loss (or mAP) of every record of a kind, in the order they were written."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(one["stage"], one["step"], one.get("loss", one.get("mAP"))) for one in every if one["kind"] == kind]
