"""Copies to the training device without making a step wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copies values to a device.

    A copy from ordinary memory to a GPU waits until all earlier work of the GPU is done. A copy from pinned memory is
    queued instead, and torch keeps the memory alive until it is done.

    Args:
        values: On the CPU; on a CPU device they are returned as they are.
        device: Where to copy them.
    """
    host = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
