"""DeepSpeed: the one file that imports it. One engine lives for one stage.

DeepSpeed fixes what is trainable when an engine is built, and changing `requires_grad` later is silently wrong, so
freezing and unfreezing mean a new engine over a fresh module.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.ops import __compatible_ops__

from embae.datasets.loading.batch import Batch
from embae.trainer.monitoring.step_phases import Phase, time_methods
from embae.trainer.recipe.optimizer import Optimizer
from embae.trainer.recipe.stage import Stage
from embae.trainer.training import optimizer_state
from embae.trainer.training.trainable import Trainable

# On CPU, DeepSpeed would compile an exchange through shared memory for minutes; gloo does not need it.
__compatible_ops__["deepspeed_shm_comm"] = False
# DeepSpeed still calls exchanges that torch 2.14 has renamed, and torch warns at each call.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
_log = logging.getLogger("DeepSpeed")
_log.setLevel(logging.WARNING)
# DeepSpeed warns of every torch optimizer but Adam; ours are tested at every ZeRO stage. It also warns of a loss that
# is not finite, about which the end of the run says more.
_log.addFilter(lambda record: not any(text in record.getMessage() for text in ("untested optimizer", "OVERFLOW!")))
for _handler in _log.handlers:  # standard output is the run's own
    if isinstance(_handler, logging.StreamHandler):
        _handler.setStream(sys.stderr)


class Engine:
    """A module wrapped by DeepSpeed with an optimizer over its trained parameters.

    Args:
        module: Computes the losses.
        stage: Optimizer, precision, clipping, ZeRO stage.
        largest: Largest number of rows in a part of a batch.
        broken: `()`, on the training device: becomes 1 once a loss is not finite. From then on weights and moments stay
            as they were before that step. Engines of a stage share it.
        trained: Names and parameters that the optimizer moves; by default all of the module that train.

    Attributes:
        module: The module.
        wrapped: DeepSpeed's engine over it.
    """

    def __init__(self, module: Trainable, stage: Stage, *, largest: int, broken: Tensor | None = None,
                 trained: Sequence[tuple[str, nn.Parameter]] | None = None):
        device = next(module.parameters()).device
        self._stage, self._broken = stage, torch.zeros((), device=device) if broken is None else broken
        self._batch: Batch | None = None
        self.module = module
        all_trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._trained = all_trained if trained is None else trained
        optimizer = build_optimizer(stage.optimizer, [parameter for _, parameter in self._trained])
        optimizer.register_step_pre_hook(self._leave_unmoved)
        # Fused optimizers look at it on the device, so that nothing waits for its value.
        optimizer.found_inf = self._broken  # type: ignore[attr-defined]
        gradients = sum(parameter.numel() for _, parameter in all_trained)
        self.wrapped, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=[parameter for _, parameter in self._trained],
            dist_init_required=False,
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
            # A single rank exchanges nothing, and yet DeepSpeed would copy every gradient back and forth, and fill in
            # zeros for missing ones.
            self.wrapped.enable_backward_allreduce = False
        self.wrapped.train()  # for good: only copies of the model are ever put into eval mode

    @property
    def optimizer(self) -> Any:
        """The optimizer: torch's, or the one that DeepSpeed wraps around it at ZeRO 1 to 3."""
        return self.wrapped.optimizer

    def step(self, parts: Sequence[Batch], lr: float) -> dict[str, Tensor]:
        """One optimizer update from the parts of this rank's share of a global batch.

        Args:
            parts: The parts.
            lr: Learning rate.

        Returns:
            The report of the module, averaged over the parts, on the device.
        """
        self._batch = parts[0]  # its plan is that of all parts
        for group in self.wrapped.optimizer.param_groups:
            group["lr"] = lr
        reports = []
        for part in parts:
            loss, report = self.wrapped(part)
            losses = torch.stack([report[name] for name in self.module.active])
            torch.maximum(self._broken, 1 - losses.isfinite().all().float(), out=self._broken)
            self.wrapped.backward(loss)
            self.wrapped.step()
            reports.append(report)
        return {key: torch.stack([report[key] for report in reports]).mean() for key in reports[0]}

    def time_phases(self, phase: Phase) -> None:
        """Runs forward, backward and optimizer within phases of these names from now on."""
        time_methods(self.wrapped, phase, forward="forward", backward="backward", step="optimizer")

    def _leave_unmoved(self, *_: Any) -> None:
        # DeepSpeed fills missing gradients with zeros, and momentum would move a head on them.
        if self._batch is not None:
            for parameter in self.module.unmoved(self._batch):
                parameter.grad = None

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer stores for each trained parameter: full tensors, on every rank (`optimizer_state.py`)."""
        return optimizer_state.read(self.wrapped.optimizer, self._trained)

    def restore_moments(self, moments: dict[str, Tensor]) -> None:
        """Continues from what `moments` returned, on any number of ranks.

        Raises:
            ValueError: They belong to other parameters.
        """
        optimizer_state.restore(self.wrapped.optimizer, self._trained, moments)

    def state(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU, frozen parts and buffers included, on every rank."""
        model = self.wrapped.module.model
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=self._stage.deepspeed.zero_stage == 3):
            return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}

    def close(self) -> None:
        """Frees the memory of the engine."""
        self.wrapped.destroy()


def build_optimizer(settings: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer that a recipe names.

    A fused optimizer goes over the weights once; with many heads that is most of a step. It is not the default on CPU.
    """
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum,
                               weight_decay=settings.weight_decay, fused=True)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
