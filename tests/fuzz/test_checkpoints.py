"""Checkpoints that were damaged: refused, and the one before is taken; never loaded wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damaged_dataset import kept
from helpers.fuzzing import ODD, damaged, edits, inputs, replaced, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st

from embae.trainer.errors import WeightsError
from embae.trainer.training.checkpoint import MARK, META, STATE, Checkpoint, newest, place, write
from embae.trainer.training.checkpoint import Meta as Said

FILES = [MARK, META, STATE]


def state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors that tell the step."""
    return {"w": torch.full((3, 4), float(step))}, {"w/exp_avg": torch.full((3, 4), step / 2)}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage with checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp("stage")
    for step in (5, 10):
        write(place(folder, step), Said("embedding", step, 1.5, 2, {"mAP": 0.5, "step": 5}), *state(step))
    return folder


def right(found: Checkpoint) -> None:
    """What is taken is what was written."""
    step = found.meta.step
    assert found.path.name == f"step-{step:06}" and step in (5, 10)
    assert found.meta == Said("embedding", step, 1.5, 2, {"mAP": 0.5, "step": 5})
    for loaded, wanted in zip(found.state(), state(step), strict=True):
        assert loaded.keys() == wanted.keys() and all(torch.equal(loaded[key], wanted[key]) for key in wanted)


@inputs(60)
@given(name=st.sampled_from(FILES), changes=edits)
def test_damaged_files(stage: Path, name: str, changes: list[tuple[str, int, int]]) -> None:
    path = place(stage, 10) / name
    with kept(path):
        before = path.read_bytes()
        path.write_bytes(damaged(before, changes))
        with works_or_refuses(path.parent, only=(WeightsError,)):
            right(Checkpoint.open(path.parent))
        with works_or_refuses():
            found = newest(stage)
            assert found is not None
            right(found)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file(stage: Path, name: str, odd: Any) -> None:
    with replaced(place(stage, 10) / name, odd):
        with works_or_refuses(place(stage, 10), only=(WeightsError,)) as refusals:
            Checkpoint.open(place(stage, 10))
        assert refusals
        with works_or_refuses():
            found = newest(stage)
            assert found is not None and found.meta.step == 5
