"""Signals to a run as a user starts it: it ends with 75 and a checkpoint, and the same command goes on to the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.fault_injection import Command, Fault, exports, records

from embae.trainer.training.checkpoint import Checkpoint, list_checkpoints

pytestmark = pytest.mark.ranks

SAVED = r"rename .*/embedding/checkpoints/step-[0-9]+[.]partial$"  # of the whole folder, not of files in it
# In the order that a run meets them: moment, and what is said of it. What one rank alone gets, all hear of.
SIGNALS = [
    (Fault(SAVED, 1, to="other", signal=signal.SIGTERM), "stopped by a signal to another rank after step"),
    (Fault(SAVED, 2, to="launcher", signal=signal.SIGUSR1, times=3), "stopped by SIGUSR1 after step"),
    (Fault(r"read .*/park/gallery.*\.tar", 1, to="launcher", signal=signal.SIGTERM), "stopped by SIGTERM"),  # scoring
    (Fault(SAVED, 1, to="all", signal=signal.SIGINT), "stopped by SIGINT"),  # as a terminal does
    (Fault(r"write .*/embedding/(done|export)", 1, to="launcher", signal=signal.SIGINT), "stopped by SIGINT"),
    (Fault(r"(write|mkdir) .*/cache/.*\.(partial|chunks)", 2, to="launcher", signal=signal.SIGUSR1),
     "stopped by SIGUSR1 outside of a stage's steps"),
]  # fmt: skip


def test_signals_end_a_run_that_goes_on_to_the_same_end(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path
) -> None:
    folder, words = undisturbed
    run, steps = tmp_path / "run", []
    command = Command(*words, "--out", run, cwd=folder, notes=tmp_path / "notes")
    for number, (fault, said) in enumerate(SIGNALS):
        ended = command.start(fault)
        assert ended.code == 75 and (run / "stopped").exists(), (fault, ended)
        assert said in ended.err and "Traceback" not in ended.err, (fault, ended.err)
        assert ended.after is not None and ended.after < 30, (fault, ended)
        assert ended.out.count("resumes after step") == (number > 0), ended.out
        newest = Checkpoint.open(list_checkpoints(run / "embedding")[0])
        steps.append(newest.meta.step)
        if "after step" in said:
            assert f"{said} {newest.meta.step} of stage embedding" in ended.err
    assert steps == sorted(steps) and steps[0] >= 2 and steps[-1] == 11, steps
    with command.running(Fault(rf"write .*{run.name}/metrics\.jsonl", 1, signal=0)) as (process, token):
        struck = tmp_path / "notes" / f"{token}.struck"
        while process.poll() is None and not struck.exists():
            time.sleep(0.01)
        assert not (run / "stopped").exists()
        assert process.wait(150) == 0, command.said(token)
    assert exports(run) == exports(folder / "whole") and len(exports(run)) == 8
    assert records(run) == records(folder / "whole")
    assert records(run, "eval") == records(folder / "whole", "eval")


@pytest.mark.parametrize("between, code", [(0.0, 75), (0.5, 1)])
def test_ctrl_c_from_terminal_and_launcher_is_one_and_a_second_one_ends_at_once(between: float, code: int) -> None:
    lines = [
        "import signal, time",
        "from embae.trainer.runtime.signals import StopSignals",
        "stopping = StopSignals()",
        "stopping.listen()",
        "with stopping.after_step():",
        f"    signal.raise_signal(signal.SIGINT); time.sleep({between}); signal.raise_signal(signal.SIGINT)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done
    assert ("ended at once" if code == 1 else "stopped by SIGINT") in done.stderr
