"""This process's place among the ranks, and exchanges between them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from embae.datasets.sampling.sampler import share
from embae.trainer.errors import RunError, exit_code
from embae.trainer.runtime.rendezvous import meet
from embae.trainer.runtime.watchdog import Watchdog

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This rank among the others.

    Attributes:
        rank: From 0 to `world_size` − 1.
        local_rank: Among the ranks of this machine.
        world_size: Number of ranks.
        device: The device that this rank computes on.
        watchdog: Ends this rank if another one is lost; `join` starts it.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    watchdog: Watchdog = field(default_factory=Watchdog, compare=False)

    @property
    def first(self) -> bool:
        """Whether this rank writes the records."""
        return self.rank == 0


def join(timeout_s: float = 600) -> World:
    """Joins the ranks that the launcher's environment variables describe; without these, this process is the only rank.

    Args:
        timeout_s: How long to wait until the other ranks join, and later for a silent rank (`watchdog.py`).

    Raises:
        RunError: The other ranks did not join within the time-out.
    """
    _die_with_parent()
    rank, size, local = (int(os.environ.get(key, default)) for key, default in
                         (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    os.environ.setdefault("LOCAL_RANK", str(local))  # DeepSpeed looks for it
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        # Deterministic, so that a killed and resumed run ends with the same bits as an undisturbed one; and true fp32.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
    world = World(rank, local, size, device)
    if not dist.is_initialized():
        try:
            store = meet(rank, size, timeout_s)
        except (dist.DistError, TimeoutError) as error:
            raise RunError(f"rank {rank}: not all of {size} ranks joined within {timeout_s:.0f} s "
                           f"({str(error).splitlines()[0]})") from error
        # The watchdog ends a rank that waits for a lost rank, and names it. A backend's own time-out cannot know that
        # one rank may be busy for a long time while the others rightly wait.
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=size, store=store,
                                timeout=timedelta(days=7), device_id=device if gpu else None)
        if size > 1:
            world.watchdog.start(store, rank, size, timeout_s)
    return world


def leave() -> None:
    """Leaves the world."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _die_with_parent() -> None:
    """On Linux, ends this worker with its launcher. Otherwise it would train on unseen, and keep the folder locked."""
    if "LOCAL_RANK" in os.environ and os.uname().sysname == "Linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # The launcher may have ended already: importing torch takes seconds.
        if os.environ.get("EMBAE_LAUNCHER", str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), signal.SIGKILL)


class _Gather(torch.autograd.Function):
    """Gathers all ranks' rows. The gradient of this rank's rows goes back; the other ranks take that of theirs."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        ctx.rows_here = share(total, rank, world)
        every = [rows.new_empty(_length(share(total, other, world)), *rows.shape[1:]) for other in range(world)]
        # Ranks may have different numbers of rows, but backends gather equal shapes only.
        longest = max(len(part) for part in every)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[:len(rows)] = rows
        received = [torch.empty_like(padded) for _ in every]
        dist.all_gather(received, padded)
        return torch.cat([padded_part[:len(part)] for padded_part, part in zip(received, every, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.rows_here], None


def _length(part: slice) -> int:
    return part.stop - part.start


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Gathers the global batch `(B, …)` from every rank's share of it, with the gradient of this rank's rows.

    A loss over the result has to be multiplied by the world size before the engine averages the gradients: each rank
    contributes the part of the gradient through its rows, and these parts add up.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows, total)


def barrier() -> None:
    """Waits for every rank."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's value, on every rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value := value.clone())
    return value


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def on_first_rank(world: World, act: Callable[[], T]) -> T | None:
    """Runs a function on rank 0 only, and returns its result there; if it fails, every rank ends instead of waiting."""
    result, error = None, None
    if world.first:
        try:
            result = act()
        except Exception as caught:
            error = caught
    code = broadcast_object(exit_code(error) if error else 0)
    if error:
        raise error
    if code:
        raise SystemExit(code)
    return result


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on every rank."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every
