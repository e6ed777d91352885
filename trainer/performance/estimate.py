"""Estimates what a step of a stage needs of each rank, for any number of ranks, without the ranks or a GPU.

What a rank keeps is arithmetic over the sizes of parameters, by what DeepSpeed does at each ZeRO stage; all else is
read off the stage's own forward and backward pass, run on tensors without values among ranks that are not there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from embae.datasets.loading.batch import Batch
from embae.trainer.performance.exchanges import Recorder, bytes_sent
from embae.trainer.recipe.optimizer import Optimizer
from embae.trainer.recipe.stage import Stage
from embae.trainer.runtime.distributed import gather_rows
from embae.trainer.training.adversary import Update, own_parameters
from embae.trainer.training.objective import Objective

EXACT, HALF = 4, 2  # bytes of a number in single precision and in bfloat16
LOW = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose gradients DeepSpeed exchanges in bfloat16 under autocast
# DeepSpeed's defaults of stage3_max_live_parameters, stage3_param_persistence_threshold.
LIVE, PERSISTENT = 1_000_000_000, 100_000


@contextmanager
def pretended(module: nn.Module, rank: int, world_size: int) -> Iterator[None]:
    """A simulated world as one of its ranks sees it: tensors have no values, and exchanges go nowhere.

    Args:
        module: Already built, since timm reads values while it builds; its tensors lose theirs.
        rank: The rank.
        world_size: Number of ranks.
    """
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # batch plans are real
            module._apply(mode.from_tensor)
            yield
    finally:
        dist.destroy_process_group()


class Passes(NamedTuple):
    """The cost of a rank's forward and backward passes of a step.

    Attributes:
        activations: Bytes kept for a backward pass, batch included, where they are most.
        sent: Bytes that a rank sends by the ring algorithm: statistics of batch norms, embeddings, the report.
        flops: Floating-point operations.
    """

    activations: int
    sent: float
    flops: int


def passes(updates: Collection[Update], batch: Batch, keys: Stage) -> Passes:
    """Runs every update of a step on one part of a rank's share; the other parts cost the same.

    Args:
        updates: The updates.
        batch: The part.
        keys: The stage.
    """
    most, sent, flops = 0, 0.0, 0
    model = {_place(tensor) for module, _ in updates for tensor in (*module.parameters(), *module.buffers())}
    for module, losses in updates:
        module.active = losses
        storages = {_place(batch.inputs): batch.inputs.untyped_storage().nbytes()}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if _place(tensor) not in model:
                storages[_place(tensor)] = tensor.untyped_storage().nbytes()
            return tensor  # kept alive as long as its graph, so that no other storage takes its address

        bf16 = torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=keys.precision == "bf16")
        with FlopCounterMode(display=False) as counter, Recorder() as recorder:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bf16:
                loss, _ = module(batch)
            loss.backward()
        most = max(most, sum(storages.values()))
        sent += keys.accumulate * sum(map(bytes_sent, recorder.calls))
        flops += keys.accumulate * counter.get_total_flops()
    objective = next(module for module, _ in updates if isinstance(module, Objective))
    for state in objective.states.values():  # once a step, of all parts and after all updates
        with Recorder() as recorder:
            state.update(batch, torch.zeros(()), gather_rows)
        sent += sum(map(bytes_sent, recorder.calls))
    return Passes(most, sent, flops)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Owned:
    """The sizes of an engine's tensors, in elements.

    Attributes:
        held: Of every parameter of its module, frozen ones too.
        trained: Of each that its optimizer moves.
        reduced: Of each whose gradient is exchanged.
        low: Of these, the elements that are exchanged in bfloat16 where the stage computes in it.
        updates: How often a step updates.
    """

    held: list[int]
    trained: list[int]
    reduced: list[int]
    low: int
    updates: int


def owned(updates: Collection[Update], keys: Stage) -> list[Owned]:
    """The sizes of each engine of a stage, in their order."""
    assert keys.loss is not None  # what this kind of stage is for
    engines = []
    for module in dict.fromkeys(update.module for update in updates):
        held = list(module.parameters())
        reduced = [parameter for parameter in held if parameter.requires_grad]
        low = {id(parameter): parameter.numel() for part in module.modules() if type(part) in LOW
               for parameter in part.parameters(recurse=False) if parameter.requires_grad}
        engines.append(Owned([parameter.numel() for parameter in held],
                             [parameter.numel() for _, parameter in own_parameters(module, keys.loss)],
                             [parameter.numel() for parameter in reduced], sum(low.values()),
                             sum(update.module is module for update in updates)))
    return engines


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank keeps.

    Attributes:
        weights: Parameters and buffers; at ZeRO 3 its pieces of them, and all of them as if gathered at once.
        gradients: Between backward pass and update, of the engine with most; where a rank's piece at ZeRO 1 and 2 lies
            within one parameter, DeepSpeed keeps the gradient of all of that instead.
        optimizer: Its moments, and at ZeRO 1 to 3 its own copy of the weights that it moves.
        exchange: Where DeepSpeed lines up gradients to be exchanged.
        average: The weights' moving average.
    """

    weights: int
    gradients: int
    optimizer: int
    exchange: int
    average: int


def rank_memory(engines: Collection[Owned], keys: Stage, world_size: int, zero: int, *, buffers: int,
           averaged: int) -> RankMemory:
    """The bytes that a rank keeps at a ZeRO stage.

    Args:
        engines: What each engine is over.
        keys: The stage.
        world_size: Number of ranks.
        zero: The ZeRO stage.
        buffers: Bytes of the model's buffers.
        averaged: Of these, the bytes that a moving average of the weights is taken of too.
    """
    first, options = next(iter(engines)), keys.deepspeed.zero if zero else {}
    piece_elements = sum(_piece(one.trained, world_size, zero) for one in engines)
    whole = sum(first.held)  # the other engines' are among them
    weights = EXACT * whole
    if zero in (1, 2):  # trained weights are one flat row, padded to equal pieces
        weights += EXACT * (world_size * piece_elements - sum(first.trained))
    if zero == 3:
        piece = _piece(first.held, world_size, zero)
        gathered = min(world_size * piece, int(options.get("stage3_max_live_parameters", LIVE))) * (world_size > 1)
        weights = EXACT * (piece + gathered)
    gradients = EXACT * piece_elements
    if not zero:  # ranks that exchange fill in those of the parameters that another engine moves
        gradients = EXACT * max(sum(one.reduced if world_size > 1 else one.trained) for one in engines)
    elif zero == 1 and keys.accumulate > 1:  # whole ones add up over the parts
        gradients += EXACT * sum(first.trained)
    moments = _moments(keys.optimizer)
    # Adam counts its steps, in single precision, by parameter; ZeRO hands it flat ones.
    counts = sum(len(one.trained) for one in engines) if not zero else 1
    optimizer = EXACT * (moments * piece_elements + counts * (moments == 2) + piece_elements * (zero > 0))
    kinds = [EXACT]  # of gradients that are exchanged
    if keys.precision == "bf16" and first.low:
        kinds = [HALF, EXACT] if first.low < sum(first.reduced) else [HALF]
    bucket = keys.deepspeed.bucket(sum(first.reduced))
    if not zero:
        exchange = EXACT * max(sum(one.reduced) for one in engines) * (world_size > 1)
    elif not options.get("contiguous_gradients", True):
        exchange = EXACT * min(bucket, sum(first.reduced))
    elif zero == 3:
        exchange = bucket * sum(kinds)
    else:
        exchange = bucket * EXACT * len(kinds) * (1 + bool(options.get("overlap_comm")))
    average = (EXACT * _piece(first.trained, world_size, 3 if zero == 3 else 0) + averaged) if keys.ema else 0
    return RankMemory(weights + buffers, gradients, optimizer, exchange, average)


def sent(engines: Collection[Owned], keys: Stage, world_size: int, zero: int) -> float:
    """Bytes that a rank sends by the ring algorithm in a step, to exchange gradients and weights.

    DeepSpeed reduces all gradients on all ranks at ZeRO 0 to 2: in single precision at 0, else in bfloat16 where a
    layer computes in it, and at 2 and 3 after each part of a batch. At 1 and 2 ranks then gather what each has moved.
    At 3 they gather every weight, frozen or not: small ones after the update, large ones for each part of a batch, and
    once for both passes as long as all of them fit into ``stage3_max_live_parameters``.
    """
    once = (world_size - 1) / world_size
    if not zero:
        return 2 * once * EXACT * sum(one.updates * sum(one.reduced) for one in engines)
    first = next(iter(engines))
    low = first.low if keys.precision == "bf16" else 0
    gradients = (EXACT * sum(first.reduced) - (EXACT - HALF) * low) * (1 if zero == 1 else keys.accumulate)
    gathered = [first.trained]
    if zero == 3:
        small = int(keys.deepspeed.zero.get("stage3_param_persistence_threshold", PERSISTENT))
        large = [size for size in first.held if size > small]
        gathered = [[size for size in first.held if size <= small], *[large] * keys.accumulate]
    weights = EXACT * world_size * sum(_piece(sizes, world_size, zero) for sizes in gathered)
    return once * (weights + gradients * (1 if zero == 3 else 2))


def _piece(sizes: Iterable[int], world_size: int, zero: int) -> int:
    """Elements of a rank's piece: of all of it together at ZeRO 1 and 2, an even number; of each parameter at 3."""
    if zero == 3:
        return sum(-(-size // world_size) for size in sizes)
    return sum(sizes) if not zero else 2 * -(-sum(sizes) // (2 * world_size))


def _moments(optimizer: Optimizer) -> int:
    if optimizer.name == "sgd":
        return int(optimizer.momentum > 0)
    return 2


def size_of(tensors: Iterable[Any]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.nbytes for tensor in tensors)
