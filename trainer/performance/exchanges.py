"""Exchanges between ranks, as they pass: which there are, and how much a rank sends in them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only


class Recorder(TorchDispatchMode):
    """Keeps every exchange between ranks, with tensors of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "barrier" not in str(func):
            self.calls.append((func, *tree_map_only(Tensor, torch.zeros_like, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def bytes_sent(call: tuple[Any, Any, Any]) -> float:
    """Bytes that a rank sends by the ring algorithm.

    An all-reduce passes everything round twice less what stays, any other exchange once.
    """
    func, args, _ = call
    whole = max(sum(tensor.nbytes for tensor in tree_iter(arg) if isinstance(tensor, Tensor)) for arg in args)
    world = dist.get_world_size()
    return (2 if "allreduce" in str(func) else 1) * (world - 1) / world * whole
