"""Whole runs that are killed again and again end as one that was not: the same weights, the same records.

The long form: ``EMBAE_FAULTS=40 pytest tests/trainer/test_faults.py`` kills that many times, at moments drawn from
``EMBAE_SEED``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.fault_injection import TIMEOUT, Command, Ended, Fault, exports, records

pytestmark = pytest.mark.ranks

KILLS = int(os.environ.get("EMBAE_FAULTS", "0"))
SEED = int(os.environ.get("EMBAE_SEED", "0"))


def _moments() -> list[Fault]:
    """One of each kind that a run meets in this order; where within its kind, and how long after, is drawn."""
    drawn = random.Random(SEED)

    def soon() -> float:
        return drawn.choice([0.0, drawn.uniform(0.001, 0.05)])

    return [
        Fault(r"(mkdir|write) .*/embedding/checkpoints/step-.*\.partial", drawn.randint(4, 12)),  # half a checkpoint
        Fault(r"rename .*/embedding/checkpoints/step-", drawn.randint(1, 2), to="launcher", delay=soon()),
        Fault(r"(rename .*/embedding/export|(write|rename) .*/embedding/done)", drawn.randint(1, 3), to="all"),
        Fault(r"(mkdir|write|rename) .*/cache/", drawn.randint(1, 8), to="other"),
        Fault(r"rename .*/target-(nuisance|embedding)/checkpoints/step-", drawn.randint(1, 4), delay=soon()),
        Fault(r"(write|rename) .*/evaluation/park\.(partial|json)", drawn.randint(1, 4), to="launcher"),  # half scored
    ]


def _same(run: Path, whole: Path) -> None:
    assert exports(run) == exports(whole) and len(exports(run)) == 8
    assert records(run) == records(whole)
    assert records(run, "eval") == records(whole, "eval")
    assert sorted(records(run, "probe")) == sorted(records(whole, "probe"))
    assert not list(run.rglob("*.partial")) and not list(run.rglob("*.tmp")) and not (run / "stopped").exists()


def test_killed_at_every_kind_of_moment(undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    folder, words = undisturbed
    command = Command(*words, "--out", tmp_path / "run", cwd=folder, notes=tmp_path / "notes")
    for fault in _moments():
        ended = command.start(fault)
        assert ended.after is not None and ended.after < 30, (fault, ended)
        assert ended.code == (1 if fault.to in ("self", "other") else -signal.SIGKILL), (fault, ended.err)
        assert "Traceback" not in ended.err and "a bug of" not in ended.err, ended.err
    ended = command.start()
    assert ended.code == 0, ended.err
    _same(tmp_path / "run", folder / "whole")


@pytest.mark.skipif(not KILLS, reason="the long form; set EMBAE_FAULTS to the number of kills")
def test_killed_many_times(undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    """Kills come at any touch of a file of the run but TensorBoard's, and at any time after one."""
    folder, words = undisturbed
    drawn, kills, runs, seconds = random.Random(SEED), 0, 0, []
    whom = dict.fromkeys(("self", "other", "launcher", "all"), 0)
    while kills < KILLS:
        run, runs = tmp_path / f"run-{runs}", runs + 1
        command = Command(*words, "--out", run, cwd=folder, notes=tmp_path / "notes")
        while True:
            to = drawn.choice([*whom])
            delay = drawn.choice([0.0, 0.0, drawn.uniform(0.001, 0.02), drawn.uniform(0.02, 0.5)])
            at = rf" .*{run.name}/(?!tensorboard)|read .*\.tar"
            ended: Ended = command.start(Fault(at, drawn.randint(1, 90), to=to, delay=delay))
            print(f"{time.strftime('%H:%M:%S')} run {runs}, {to}: code {ended.code} after {ended.seconds:.0f} s; "
                  f"{ended.out.splitlines()[-1][:60]}", flush=True)
            assert "Traceback" not in ended.err and "a bug of" not in ended.err, ended.err
            if ended.code == 0:
                break
            assert ended.code in (1, -signal.SIGKILL), ended
            whom[to], kills = whom[to] + 1, kills + 1
            seconds.append(ended.seconds)
        _same(run, folder / "whole")
    print(f"{kills} kills in {runs} runs, {whom}; seconds of a start that was killed: {min(seconds):.0f} to "
          f"{max(seconds):.0f} (a hang would be {TIMEOUT})")
