"""What losses over the pairs of a global batch have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from embae.trainer.losses.term import LossTerm

if TYPE_CHECKING:
    from embae.trainer.losses.settings import StageSettings


class PairLoss(LossTerm):
    """A loss that compares every image of the global batch with every other one."""

    needs_identities: ClassVar[bool] = True
    over_global_batch: ClassVar[bool] = True
    before_neck: ClassVar[bool] = True

    def mistakes(self, name: str, stage: StageSettings) -> Iterator[str]:
        data = stage.data
        if data.K == 1:
            yield f"data.K: the {name} loss needs at least 2"
        if 1 in (data.P.values() if isinstance(data.P, dict) else [data.P]):
            yield f"data.P: the {name} loss needs at least 2"
        if stage.accumulate > 1:
            yield "accumulate: a mined loss sees the whole global batch, so this must be 1"
