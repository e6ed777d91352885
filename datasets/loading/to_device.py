"""Copies to the training device that a step does not wait for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The values on the device.

    From ordinary memory a copy to a GPU would wait for all that was asked of it before; from pinned memory it takes its
    turn, and torch keeps the memory until then.

    Args:
        values: On the CPU; on a CPU device they are returned as they are.
        device: Where they go.
    """
    host = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
