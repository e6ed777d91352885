"""How a stage is optimised: `Stage.optimizer`, `Stage.schedule` and `Stage.deepspeed` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from embae.datasets.fields import Fraction, Length, Positive, Share, Strict, checked


class Optimizer(Strict):
    """A torch optimizer over the trained parts."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 3e-4
    weight_decay: Length = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Fraction = 0.9


class Schedule(Strict):
    """Learning rate over epochs: linear warm-up, constant, then exponential decay or a cosine to ``final``."""

    warmup: Length = 0.0
    constant: Length = 0.0
    decay: Length = 0.0
    cosine: Length = 0.0
    final: Length = 0.0

    @property
    def epochs(self) -> float:
        """Length of the stage."""
        return self.warmup + self.constant + self.decay + self.cosine

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        wrong = []
        if self.decay and self.cosine:
            wrong.append("decay: give decay or cosine, not both")
        if self.decay and not self.final:
            wrong.append("final: exponential decay needs the learning rate it ends at, above 0")
        if self.final and not self.decay and not self.cosine:
            wrong.append("final: has no effect without decay or cosine; give one of them")
        if not self.epochs:
            wrong.append("give the length in epochs of at least one of warmup, constant, decay, cosine")
        return checked(self, wrong)


# Each setting has one key: these are set by the recipe's own keys.
OWNED = {
    "train_batch_size": "data.P/K or data.batch", "train_micro_batch_size_per_gpu": "data.P/K or data.batch",
    "gradient_accumulation_steps": "accumulate", "gradient_clipping": "clip", "optimizer": "optimizer",
    "scheduler": "schedule", "bf16": "precision", "fp16": "precision", "amp": "precision",
    "torch_autocast": "precision", "zero_optimization": "deepspeed.zero_stage, deepspeed.zero",
}


class DeepSpeed(BaseModel):
    """``zero_stage``, more keys of DeepSpeed's ``zero_optimization`` under ``zero``, and any other key of DeepSpeed."""

    model_config = ConfigDict(extra="allow", frozen=True)
    zero_stage: Literal[0, 1, 2, 3] = 0
    zero: dict[str, Any] = {}

    def bucket(self, gradients: int) -> int:
        """Number of gradients that are exchanged at a time, for which ZeRO reserves memory: all, up to 500 million.

        DeepSpeed's default of 500 million for every model takes gigabytes for a model of a few million.
        """
        return int(self.zero.get("reduce_bucket_size", min(gradients, 500_000_000)))

    @model_validator(mode="after")
    def _owned(self) -> DeepSpeed:
        owned = {key: OWNED[key] for key in self.model_extra or {} if key in OWNED}
        if "stage" in self.zero:
            owned["zero.stage"] = "deepspeed.zero_stage"
        return checked(self, [f"{key}: the recipe has its own key for this; set {owned[key]}" for key in owned])
