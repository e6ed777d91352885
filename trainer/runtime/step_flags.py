"""What one rank knows and all must act on after the same step: a signal, a failed write, a loss that is not finite."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from embae.trainer.runtime.distributed import World


class StepFlags:
    """Flags that all ranks see alike, exchanged after every step.

    On a GPU what is returned is what was exchanged one step before, so that no step waits for the one before it to be
    computed; on the CPU it is the step's own.
    """

    def __init__(self, world: World):
        self._world, self._gpu = world, world.device.type == "cuda"
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, *flags: bool | Tensor) -> list[bool]:
        """Whether each flag is set on any rank; every rank calls it after every step.

        Args:
            flags: This rank's; tensors are `()` on the training device, and set where not 0.
        """
        own = torch.stack([flag.float() if isinstance(flag, Tensor) else
                           torch.full((), float(flag), device=self._world.device) for flag in flags])
        if self._world.world_size > 1:
            dist.all_reduce(own, dist.ReduceOp.MAX)
        if not self._gpu:
            return [bool(flag) for flag in own.tolist()]
        copy, copied = torch.empty(len(flags), pin_memory=True), torch.cuda.Event()
        copy.copy_(own, non_blocking=True)
        copied.record()
        before, self._before = self._before, (copy, copied)
        if before is None:
            return [False] * len(flags)
        before[1].synchronize()
        return [bool(flag) for flag in before[0].tolist()]
