"""DeepSpeed: the one file that imports it. One engine lives for one stage.

DeepSpeed fixes what is trainable when an engine is built, and changing `requires_grad` later is silently wrong, so
freezing and unfreezing mean a new engine over a fresh module.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.ops import __compatible_ops__

from embae.datasets.loading.batch import Batch
from embae.trainer.losses.adversary import Adversary
from embae.trainer.losses.objective import Objective
from embae.trainer.monitoring.step_phases import Phase, time_methods
from embae.trainer.recipe.optimizer import Optimizer
from embae.trainer.recipe.stage import Stage
from embae.trainer.training import optimizer_state as moments

# On CPU, DeepSpeed would compile an exchange through shared memory for minutes; gloo does without.
__compatible_ops__["deepspeed_shm_comm"] = False
# DeepSpeed still calls exchanges that torch 2.14 has given other names, and torch says so at each call.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
_log = logging.getLogger("DeepSpeed")
_log.setLevel(logging.WARNING)
# Said of every torch optimizer but Adam, whatever a user did; ours are tested at every ZeRO stage. And of a loss that
# is not finite, of which the run's end says more.
_log.addFilter(lambda record: not any(said in record.getMessage() for said in ("untested optimizer", "OVERFLOW!")))
for _handler in _log.handlers:  # standard output is the run's own
    if isinstance(_handler, logging.StreamHandler):
        _handler.setStream(sys.stderr)


class Engine:
    """An objective wrapped by DeepSpeed with an optimizer over trained parameters.

    Args:
        objective: On the CPU; moved to the training device.
        stage: Optimizer, precision, clipping, ZeRO stage.
        largest: Most rows of a part of a batch.
        broken: `()`, on the training device: becomes 1 once a loss is not finite. From then on weights and moments stay
            as they were before that step. Engines of a stage share it.
        others: Trained parameters that another engine of the stage owns.
    """

    def __init__(self, objective: Objective | Adversary, stage: Stage, *, largest: int, broken: Tensor | None = None,
                 others: Iterable[nn.Parameter] = ()):
        device = next(objective.parameters()).device
        self._stage, self._broken = stage, torch.zeros((), device=device) if broken is None else broken
        self._turn: tuple[Batch, Collection[str]] | None = None
        self._objective = objective
        self._strange = {id(parameter) for parameter in others}
        trained = [parameter for _, parameter in self._named()]
        optimizer = build_optimizer(stage.optimizer, trained)
        optimizer.register_step_pre_hook(self._leave_unmoved)
        # Fused optimizers look at it on the device, so that nothing waits for its value.
        optimizer.found_inf = self._broken  # type: ignore[attr-defined]
        gradients = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, model_parameters=trained, dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": largest,
                "gradient_accumulation_steps": stage.accumulate,
                "gradient_clipping": stage.clip or 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": stage.deepspeed.zero_stage, **stage.deepspeed.zero,
                                      "reduce_bucket_size": stage.deepspeed.bucket(gradients)},
                "torch_autocast": {"enabled": stage.precision == "bf16", "dtype": "bfloat16"},
                "steps_per_print": 2**62,
                **(stage.deepspeed.model_extra or {}),
            })
        if dist.get_world_size() == 1 and not stage.deepspeed.zero_stage:
            # Nobody to exchange with, and yet it would copy every gradient there and back, and zeros for missing ones.
            self._engine.enable_backward_allreduce = False
        self._engine.train()  # for good: only copies of the model are ever put into eval mode

    def step(self, batches: Sequence[Batch], lr: float, terms: Collection[str]) -> dict[str, Tensor]:
        """One optimizer update from the parts of this rank's share of a global batch.

        Args:
            batches: The parts.
            lr: Learning rate.
            terms: The losses whose turn it is.

        Returns:
            The report of the objective, averaged over the parts, on the device.
        """
        self._turn = batches[0], terms  # its plan is that of all parts
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        reports = []
        for batch in batches:
            loss, report = self._engine(batch, terms)
            found = torch.stack([report[term] for term in terms])
            torch.maximum(self._broken, 1 - found.isfinite().all().float(), out=self._broken)
            self._engine.backward(loss)
            self._engine.step()
            reports.append(report)
        return {key: torch.stack([report[key] for report in reports]).mean() for key in reports[0]}

    def time_phases(self, phase: Phase) -> None:
        """Has forward, backward and optimizer run within phases of these names from now on."""
        time_methods(self._engine, phase, forward="forward", backward="backward", step="optimizer")

    def _leave_unmoved(self, *_: Any) -> None:
        # DeepSpeed fills missing gradients with zeros, and momentum would move a head on them.
        if self._turn is not None:
            for parameter in self._objective.unmoved(*self._turn):
                parameter.grad = None

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer keeps of each trained parameter, whole, on every rank; see `moments.py`."""
        return moments.read(self._engine.optimizer, self._named())

    def restore_moments(self, found: dict[str, Tensor]) -> None:
        """Goes on with what `moments` gave, whatever the world size was.

        Raises:
            ValueError: They are of other parameters.
        """
        moments.restore(self._engine.optimizer, self._named(), found)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._objective.named_parameters()
                if parameter.requires_grad and id(parameter) not in self._strange]

    def state(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU, frozen parts and buffers included, on every rank."""
        model = self._engine.module.model
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=self._stage.deepspeed.zero_stage == 3):
            return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}

    def close(self) -> None:
        """Frees what the engine holds."""
        self._engine.destroy()


def build_optimizer(keys: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer that a recipe names.

    Fused, it goes over the weights once: of many heads, that is most of a step. On CPU it is not torch's default.
    """
    if keys.name == "sgd":
        return torch.optim.SGD(parameters, lr=keys.lr, momentum=keys.momentum, weight_decay=keys.weight_decay,
                               fused=True)
    kind = torch.optim.Adam if keys.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=keys.lr, betas=keys.betas, weight_decay=keys.weight_decay, fused=True)
