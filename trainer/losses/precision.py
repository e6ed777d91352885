"""The precision of losses: at least single precision, also where the model computes in bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from embae.trainer.losses.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def exact(values: Tensor) -> Tensor:
    """Values in at least single precision."""
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(values: Tensor) -> AbstractContextManager[None]:
    """A context in which operations on the device of these values keep the precision of their inputs."""
    return torch.autocast(values.device.type, enabled=False)
