"""The keys of one stage of a recipe, and the rules between them.

This module does not import torch, DALI or DeepSpeed, so that a login node checks a job in a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from embae.datasets.fields import Count, Flag, Positive, Strict, checked
from embae.trainer.clustering.registry import Cluster
from embae.trainer.losses.parts import PARTS, RARE_PARTS, PartName, Use
from embae.trainer.losses.registry import Loss
from embae.trainer.recipe.calibration import Calibrate
from embae.trainer.recipe.data import StageData
from embae.trainer.recipe.optimizer import DeepSpeed, Optimizer, Schedule

KINDS = ("loss", "calibrate", "cluster")
LENGTHS = ("epochs", "steps", "schedule")


class Stage(Strict):
    """One stage: parts, data and loss, the origin of its weights, and how it is optimised.

    Instead of having a loss, a stage may calibrate the model on its images or cluster them into pseudo-labels.
    """

    init: str
    """``hub``, ``random``, a weights file, an earlier stage, or an export of another run."""
    reinit: list[PartName] = Field(default_factory=list)
    parts: dict[PartName, Use]
    data: StageData
    loss: Loss | None = None
    calibrate: Calibrate | None = None
    cluster: Cluster | None = None
    epochs: Positive | None = None
    steps: Count | None = None
    schedule: Schedule | None = None
    optimizer: Optimizer = Optimizer()
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: Positive | None = None
    ema: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """Decay per step of a moving average of the weights, which is exported instead of the weights."""
    accumulate: Count = 1
    deepspeed: DeepSpeed = DeepSpeed()
    batch_norm: dict[PartName, Literal["batch", "running", "camera"]] = Field(default_factory=dict)
    """Statistics of a trained part's batch norms: of the batch, the running ones, or of each camera in the batch."""
    sync_batch_norm: Flag = True
    cache_features: Flag = True
    """Compute a frozen backbone's features once, if augmentation is at most a flip."""
    log_every: Count = 20
    """Steps."""
    evaluate_every: Count | None = None
    """Steps."""

    @field_validator("init", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @property
    def kind(self) -> str:
        """What the stage does: ``loss`` (it trains), ``calibrate`` or ``cluster``."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def lr_schedule(self) -> Schedule:
        """The schedule; a constant one if the stage gives only ``epochs`` or ``steps``."""
        return self.schedule or Schedule(constant=self.epochs or 1)

    @property
    def caches(self) -> bool:
        """Whether features are computed once: the backbone is frozen and augmentation is at most a flip."""
        return self.cache_features and self.use("backbone") == "frozen" and self.data.augment.at_most_flip

    def use(self, part: PartName) -> Use:
        """Whether a part trains, is frozen or is absent."""
        return self.parts.get(part, "absent")

    def trained(self) -> list[PartName]:
        """Parts that train, in the model's order."""
        return [part for part in PARTS if self.use(part) == "train"]

    def normalised(self, by: Literal["batch", "running", "camera"]) -> list[PartName]:
        """Trained parts whose batch norms use these statistics."""
        return [part for part in self.trained() if self.batch_norm.get(part, "batch") == by]

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        kinds = [kind for kind in KINDS if getattr(self, kind)]
        if len(kinds) != 1:
            return checked(self, [f"{kinds[1] if kinds else 'loss'}: give one of {', '.join(KINDS)}"])
        rules = [self._wrong_parts(), *([self._wrong_training(), self.loss.mistakes(self)] if self.loss else
                                        [self._wrong_untrained()])]
        return checked(self, [line for rule in rules for line in rule])

    def _wrong_parts(self) -> Iterator[str]:
        missing = [part for part in PARTS if part not in (*self.parts, *RARE_PARTS)]
        if missing:
            yield f"parts: expected train, frozen or absent for every part; missing: {', '.join(missing)}"
        if self.parts.get("backbone") == "absent":
            yield "parts.backbone: cannot be absent; set it to train or frozen"
        for part in self.reinit:
            if self.use(part) == "absent":
                yield f"reinit: names {part}, which is absent; set parts.{part} to train or leave it out"
        for part, by in self.batch_norm.items():
            if by == "camera" and part not in ("backbone", "embedding"):
                yield (f"batch_norm.{part}: only backbone and embedding can be normalised by camera; set it to batch "
                       "or running")
            elif by == "camera" and self.use(part) != "train":
                yield f"batch_norm.{part}: applies to parts that train, and this one does not; leave it out"

    def _wrong_untrained(self) -> Iterator[str]:
        for part, use in self.parts.items():
            if use == "train":
                yield f"parts.{part}: trains, but a stage with {self.kind} trains nothing; set it to frozen or absent"
        if self.data.from_ != "target" or self.data.labelled:
            yield f"data: {self.kind} reads the unlabelled target; give from: target and a batch"
        for key in ("reinit", "ema", *LENGTHS):
            if getattr(self, key):
                yield f"{key}: belongs to stages that train; leave it out"
        if self.calibrate and self.calibrate.what == "embedding" and self.use("embedding") == "absent":
            yield "calibrate.what: the model has no embedding; use features"

    def _wrong_training(self) -> Iterator[str]:
        if not self.trained():
            yield "parts: no part trains; set at least one part to train"
        lengths = [key for key in LENGTHS if getattr(self, key)]
        if len(lengths) != 1:
            also = f", found {' and '.join(lengths)} (null removes one)" if lengths else ""
            yield f"epochs: give one of {', '.join(LENGTHS)}{also}"
        if self.schedule and self.schedule.final > self.optimizer.lr:
            yield (f"schedule.final: {self.schedule.final} is above optimizer.lr, {self.optimizer.lr}, which decays to "
                   "it; lower it")
