"""What a recipe may say of one stage, and what must hold between its keys.

Imports neither torch, DALI nor DeepSpeed, so that a login node checks a job in a moment.
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
    """One stage: (parts, data, loss), where its weights come from, and how it is optimised.

    Instead of a loss it may calibrate the model on its images, or cluster them into pseudo-labels.
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
    """Decay, a step, of a moving average of the weights that is exported instead of them."""
    accumulate: Count = 1
    deepspeed: DeepSpeed = DeepSpeed()
    batch_norm: dict[PartName, Literal["batch", "running", "camera"]] = Field(default_factory=dict)
    """What a trained part's batch norms go by: the batch, their running statistics, or the batch camera by camera."""
    sync_batch_norm: Flag = True
    cache_features: Flag = True
    """Compute a frozen backbone's features once, where augmentation is at most a flip."""
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
        """What it does: ``loss`` (it trains), ``calibrate`` or ``cluster``."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def lr_schedule(self) -> Schedule:
        """The schedule, where only ``epochs`` or ``steps`` are given a constant one."""
        return self.schedule or Schedule(constant=self.epochs or 1)

    @property
    def caches(self) -> bool:
        """Whether features are computed once: the backbone is frozen, and augmentation is at most a flip."""
        return self.cache_features and self.use("backbone") == "frozen" and self.data.augment.at_most_flip

    def use(self, part: PartName) -> Use:
        """What a part does."""
        return self.parts.get(part, "absent")

    def trained(self) -> list[PartName]:
        """Parts that train, in the model's order."""
        return [part for part in PARTS if self.use(part) == "train"]

    def normalised(self, by: Literal["batch", "running", "camera"]) -> list[PartName]:
        """Trained parts whose batch norms go by this."""
        return [part for part in self.trained() if self.batch_norm.get(part, "batch") == by]

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            return checked(self, [f"{given[1] if given else 'loss'}: give one of {', '.join(KINDS)}"])
        rules = [self._wrong_parts(), *([self._wrong_training(), self.loss.mistakes(self)] if self.loss else
                                        [self._wrong_untrained()])]
        return checked(self, [line for rule in rules for line in rule])

    def _wrong_parts(self) -> Iterator[str]:
        missing = [part for part in PARTS if part not in (*self.parts, *RARE_PARTS)]
        if missing:
            yield f"parts: expected train, frozen or absent for every part; missing: {', '.join(missing)}"
        if self.parts.get("backbone") == "absent":
            yield "parts.backbone: cannot be absent"
        for part in self.reinit:
            if self.use(part) == "absent":
                yield f"reinit: names {part}, which is absent"
        for part, by in self.batch_norm.items():
            if by == "camera" and part not in ("backbone", "embedding"):
                yield f"batch_norm.{part}: goes by camera in backbone and embedding only; set it to batch or running"
            elif by == "camera" and self.use(part) != "train":
                yield f"batch_norm.{part}: is about parts that train, and this one does not; leave it out"

    def _wrong_untrained(self) -> Iterator[str]:
        for part, use in self.parts.items():
            if use == "train":
                yield f"parts.{part}: trains, but a stage with {self.kind} trains nothing; set it to frozen or absent"
        if self.data.from_ != "target" or self.data.labelled:
            yield f"data: {self.kind} looks at the unlabelled target; give from: target and a batch"
        for key in ("reinit", "ema", *LENGTHS):
            if getattr(self, key):
                yield f"{key}: belongs to stages that train"
        if self.calibrate and self.calibrate.what == "embedding" and self.use("embedding") == "absent":
            yield "calibrate.what: there is no embedding; take features"

    def _wrong_training(self) -> Iterator[str]:
        if not self.trained():
            yield "parts: no part trains; set at least one part to train"
        lengths = [key for key in LENGTHS if getattr(self, key)]
        if len(lengths) != 1:
            also = f"; here are {' and '.join(lengths)} (null takes one away)" if lengths else ""
            yield f"epochs: give one of {', '.join(LENGTHS)}{also}"
        if self.schedule and self.schedule.final > self.optimizer.lr:
            yield f"schedule.final: {self.schedule.final} is above optimizer.lr, {self.optimizer.lr}, that falls to it"
