"""What the fuzz tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

# Tests are imported by path (see setup.cfg): `fuzzing` lies beside them, `tiny` and `toys` with the trainer's.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "trainer")]

torch.set_num_threads(1)
