"""What formats that store a computation graph share: the size of a batch is free."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_BATCH = 2**16


def free_batch(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Dynamic shapes of a graph's inputs: their first axis, the batch, may have any size."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return tuple({0: batch} for _ in inputs)
