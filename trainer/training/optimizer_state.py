"""The optimizer's moments by full tensors, wherever ZeRO keeps them: what a checkpoint holds, for any world size.

DeepSpeed's own checkpoints load at the world size that wrote them; its universal ones leave out buffers and frozen
parameters, and know nothing of ZeRO 0. Here, at every stage a parameter's moments lie, on each rank, in one stretch of
one flat tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

TOGETHER = 2**24  # elements of one exchange


class _Stretch(NamedTuple):
    """The part of a parameter that a rank's optimizer works on: elements `span` of the parameter, `there` of `flat`."""

    flat: Tensor
    there: slice
    span: slice


def read(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Moments and step counts of each parameter that has some, gathered from all ranks: ``name/moment`` → tensor.

    Args:
        optimizer: The engine's, ZeRO's or torch's own.
        named: Trained parameters.
    """
    moments: dict[str, Tensor] = {}
    shared, state = _is_shared(optimizer), _states(optimizer)
    parts: list[tuple[str, Tensor]] = []
    for name, parameter in named:
        stretch = _stretch(optimizer, parameter)
        for key, value in state.get(stretch.flat, {}).items():
            if not isinstance(value, Tensor):
                continue
            if shared and value.dim():
                full = value.new_zeros(_shape(parameter))
                full.view(-1)[stretch.span] = value[stretch.there]
                parts.append((f"{name}/{key}", full))
            else:
                moments[f"{name}/{key}"] = value.detach().clone()
    return moments | dict(_sums(parts))


def _sums(parts: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor added up over the ranks, of which one has each element; many in one exchange."""
    ends = np.cumsum([part.numel() for _, part in parts]) // TOGETHER
    for _, chunk in itertools.groupby(zip(ends, parts, strict=True), lambda pair: pair[0]):
        names, tensors = zip(*(part for _, part in chunk), strict=True)
        flat = torch.cat([part.view(-1) for part in tensors])
        dist.all_reduce(flat)
        for name, part, whole in zip(names, tensors, flat.split([part.numel() for part in tensors]), strict=True):
            yield name, whole.view(part.shape).clone()


def restore(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]], moments: dict[str, Tensor]) -> None:
    """Gives an optimizer that has taken no step the moments that `read` found.

    Args:
        optimizer: The engine's.
        named: Trained parameters.
        moments: As `read` returned them, on any device.

    Raises:
        ValueError: Moments of a parameter that is not trained, or of another shape; says which.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in moments.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    state = _states(optimizer)
    for name, parameter in named:
        stretch = _stretch(optimizer, parameter)
        for key, full in by_name.pop(name, {}).items():
            if not full.dim():  # a count of steps
                state[stretch.flat][key] = full.to(stretch.flat.device, copy=True)
                continue
            if full.shape != _shape(parameter):
                raise ValueError(f"{name}/{key} is {tuple(full.shape)}, the parameter {tuple(_shape(parameter))}")
            if key not in state[stretch.flat]:
                state[stretch.flat][key] = torch.zeros_like(stretch.flat)
            into = state[stretch.flat][key]
            if _is_shared(optimizer):
                into[stretch.there] = full.reshape(-1)[stretch.span].to(into)
            else:
                into.copy_(full)
    if by_name:
        raise ValueError(f"holds moments of {', '.join(sorted(by_name)[:5])}, which this stage does not train")


def _is_shared(optimizer: Any) -> bool:
    """Whether each rank has a part of it (ZeRO 1 to 3)."""
    return not isinstance(optimizer, torch.optim.Optimizer)


def _states(optimizer: Any) -> Any:
    return optimizer.optimizer.state if _is_shared(optimizer) else optimizer.state


def _shape(parameter: Any) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape


def _stretch(optimizer: Any, parameter: Any) -> _Stretch:
    if not _is_shared(optimizer):
        return _Stretch(parameter, slice(None), slice(None))
    if hasattr(parameter, "ds_id"):  # ZeRO 3: every parameter is cut into one piece a rank, the last one padded
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = numel * dist.get_rank()
        length = max(0, min(numel, parameter.ds_numel - start))
        return _Stretch(optimizer.fp32_partitioned_groups_flat[group], slice(offset, offset + length),
                        slice(start, start + length))
    (flat,) = optimizer.single_partition_of_fp32_groups  # ours has one group of parameters
    mapping = parameter._hp_mapping  # ZeRO 1 and 2: all parameters in a row, cut into one piece a rank
    if mapping is None:
        return _Stretch(flat, slice(0, 0), slice(0, 0))
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return _Stretch(flat, slice(there.start, there.start + there.numel), slice(here.start, here.start + here.numel))
