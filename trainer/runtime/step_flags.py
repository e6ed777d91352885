"""Flags on which all ranks act after the same step: a stop signal, a failed write, a loss that is not finite."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from embae.trainer.runtime.distributed import World


class StepFlags:
    """Flags that are equal on all ranks, exchanged after every step.

    On a GPU the flags of the step before are returned, so that no step waits until the step before it is computed. On
    the CPU the flags of this step are returned.
    """

    def __init__(self, world: World):
        self._world, self._gpu = world, world.device.type == "cuda"
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, *flags: bool | Tensor) -> list[bool]:
        """Whether each flag is set on any rank; every rank calls it after every step.

        Args:
            flags: This rank's flags. Tensors are `()` on the training device; a value other than 0 is a set flag.
        """
        flags_here = torch.stack([flag.float() if isinstance(flag, Tensor) else
                                  torch.full((), float(flag), device=self._world.device) for flag in flags])
        if self._world.world_size > 1:
            dist.all_reduce(flags_here, dist.ReduceOp.MAX)
        if not self._gpu:
            return [bool(flag) for flag in flags_here.tolist()]
        copy, copied = torch.empty(len(flags), pin_memory=True), torch.cuda.Event()
        copy.copy_(flags_here, non_blocking=True)
        copied.record()
        before, self._before = self._before, (copy, copied)
        if before is None:
            return [False] * len(flags)
        before[1].synchronize()
        return [bool(flag) for flag in before[0].tolist()]
