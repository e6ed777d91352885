"""An exponential moving average of what a stage trains.

It is exported in place of the weights that the optimizer moves: late in training these circle around a minimum, and
their mean is near it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embae.trainer.model.embae import EmbAE


class Average:
    """The average of a model's trained parameters and of the running statistics of trained parts, also those by camera.

    After step t the average moves by 1 − min(decay, (1 + t) / (10 + t)) towards the weights, so that the first weights
    are soon forgotten. At ZeRO 3 each rank averages its own piece of every parameter.

    Args:
        model: As it is at the first step that is taken, after the engines are built.
        decay: Of the average, below 1.

    Attributes:
        averages: This rank's piece of each averaged tensor, at ZeRO 3; else the whole tensors.
    """

    def __init__(self, model: EmbAE, decay: float):
        self._decay = decay
        trained = [name for name, use in model.uses.items() if use == "train"]
        self._tensors: dict[str, Any] = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._tensors |= {name: value for name, value in model.named_buffers()
                          if name.split(".")[0] in trained and value.is_floating_point()}
        self.averages = [value.clone() for value in self._local()]

    def _local(self) -> list[Tensor]:
        """This rank's piece of each tensor; looked up at each step: ZeRO replaces the memory of its parameters."""
        return [getattr(tensor, "ds_tensor", tensor).detach() for tensor in self._tensors.values()]

    @torch.no_grad()
    def update(self, step: int, broken: Tensor) -> None:
        """Moves towards the weights after a step.

        Args:
            step: Its number, from 0.
            broken: `()`, 1 if no weight may move any more.
        """
        rate = (1 - min(self._decay, (1 + step) / (10 + step))) * (1 - broken)
        steps = torch._foreach_sub(self._local(), self.averages)
        torch._foreach_mul_(steps, rate)
        torch._foreach_add_(self.averages, steps)

    def full_state(self) -> dict[str, Tensor]:
        """The average as full tensors on the CPU, on every rank; named as in the model's state."""
        state = {}
        for name, tensor, average in self._named():
            if hasattr(tensor, "ds_id"):
                pieces = average.new_empty(len(average) * dist.get_world_size())
                dist.all_gather_into_tensor(pieces, average)
                average = pieces[:tensor.ds_numel].view(tensor.ds_shape)
            state[name] = average.cpu().clone()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continues from what `full_state` returned.

        Raises:
            ValueError: It belongs to other parameters.
        """
        shapes = {name: getattr(tensor, "ds_shape", tensor.shape) for name, tensor, _ in self._named()}
        if {name: full.shape for name, full in state.items()} != shapes:
            raise ValueError("contains no average of what this stage trains")
        for name, tensor, average in self._named():
            full = state[name].to(average)
            if hasattr(tensor, "ds_id"):  # cut into one piece for each rank, the last one padded
                start = len(average) * dist.get_rank()
                full = nn.functional.pad(full.reshape(-1)[start:], (0, len(average)))[:len(average)]
            average.copy_(full)

    def _named(self) -> Iterator[tuple[str, Any, Tensor]]:
        return zip(self._tensors, self._tensors.values(), self.averages, strict=True)
