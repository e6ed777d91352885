"""What linter and type checker say of the sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_ruff() -> None:
    found = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_mypy(tmp_path: Path) -> None:
    # Elsewhere than in the checkout: mypy must see the installed packages, under their real names.
    packages = ["-p", "embae.datasets", "-p", "embae.trainer", "-p", "embae.slurm"]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), *packages]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
