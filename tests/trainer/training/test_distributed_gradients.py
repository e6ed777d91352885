"""One step through the real engine, on several ranks and at every ZeRO stage, against one process and plain torch.

The reference knows nothing of our batch norm, gather, losses or engine: torch's own batch norm over the whole batch, a
loop over cameras, a loop over anchors, in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.gradient_cases import CASES, one_step, reference
from helpers.toy_models import (
    distance,
)


@pytest.mark.parametrize(
    ("world_size", "name", "zero"),
    [(world, name, zero) for world in (2, 3, 4) for name, case in CASES.items() for zero in case.zero],
)
def test_a_step_on_ranks_is_a_step_of_one_process(
    computed: Callable[..., Any], world_size: int, name: str, zero: int
) -> None:
    case = CASES[name]
    ranks = [rank[f"{name}, ZeRO {zero}"] for rank in computed(one_step, world_size)]
    wanted = reference(name, world_size)
    error = distance(ranks[0]["gradients"], wanted.gradients)
    others = distance(ranks[0]["others"], wanted.others)
    print(f"gradients {error:.1e}, buffers and frozen parts {others:.1e}, loss {ranks[0]['loss'] - wanted.loss:.1e}")
    assert ranks[0]["keys"] == list(wanted.model.state_dict())
    assert error < (1e-11 if case.double else 1e-5)
    assert others < (1e-11 if case.double else 1e-6)
    assert ranks[0]["loss"] == pytest.approx(wanted.loss, rel=1e-5)
    assert {(rank["loss"], rank["digest"]) for rank in ranks} == {(ranks[0]["loss"], ranks[0]["digest"])}
