"""Where there is a GPU, the tests marked for one run on it, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_what_is_marked_holds_on_a_gpu(with_gpus: dict[str, str]) -> None:
    if not with_gpus:
        pytest.skip("skipped: no GPU")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(Path(__file__).parent)]
    done = subprocess.run(command, env=with_gpus, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
