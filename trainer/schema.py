"""What a recipe may say: every key, its type, its default and what must hold between keys.

Imports neither torch, DALI nor DeepSpeed, so that a login node checks a job in a moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PartName = Literal["backbone", "embedding", "nuisance", "decoder"]
PARTS: tuple[PartName, ...] = ("backbone", "embedding", "nuisance", "decoder")
Use = Literal["train", "frozen", "absent"]
TTA = Literal["none", "flip", "ten-crop"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Strict(BaseModel):
    """Unknown keys are errors: a typo never becomes a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nuisance(Strict):
    """The nuisance heads: how wide, and how many."""

    dim: Count = 128
    per: Literal["shared", "dataset", "camera"] = "shared"


class Model(Strict):
    """The model's parts."""

    backbone: str = "mobilenetv1_100"
    embedding: Count = 128
    hidden: Count = 1024
    nuisance: Nuisance = Nuisance()


class Data(Strict):
    """Where the images are, and how they are read."""

    root: Path = Path("shards")
    sources: list[Name] = Field(min_length=1)
    target: Name
    image: tuple[Count, Count] = (256, 128)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    loader: Literal["dali", "webdataset"] = "dali"
    threads: Count | None = None
    synthetic: dict[Name, dict[str, int | str]] = {}
    """Datasets to draw and shard if they are not there: name → options of ``embae shard synthetic``."""


class AugmentKeys(Strict):
    """See `embae.datasets.Augment`."""

    flip: bool = False
    crop: bool = False
    pad: Annotated[int, Field(ge=0)] = 0
    erase: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0


class StageData(Strict):
    """What a stage reads: P × K for labelled stages, a plain global batch for the others."""

    from_: Literal["sources", "target"] = Field(alias="from")
    P: Count | dict[Name, Count] | None = None
    K: Count | None = None
    batch: Count | None = None
    weights: dict[Name, Positive] | None = None
    mix: bool = False
    augment: AugmentKeys = AugmentKeys()

    @property
    def labelled(self) -> bool:
        """Whether batches are made of identities."""
        return self.batch is None

    @model_validator(mode="after")
    def _shape(self) -> StageData:
        if (self.batch is None) == (self.P is None and self.K is None):
            raise ValueError("give either P and K (labelled images) or batch (any images)")
        if self.batch is None and (self.P is None or self.K is None):
            raise ValueError("a labelled stage needs both P and K")
        if self.batch is not None and (self.weights or self.mix):
            raise ValueError("weights and mix belong to labelled stages; plain batches are shuffled over all images")
        return self


class Triplet(Strict):
    """Batch-hard triplet loss; a numeric margin gives the hinge, ``soft`` log(1 + exp(d_ap − d_an))."""

    mining: Literal["batch-hard"] = "batch-hard"
    margin: Literal["soft"] | Positive = "soft"
    weight: Positive = 1.0


class Reconstruction(Strict):
    """Mean squared error between the decoder's output and the backbone's features."""

    weight: Positive = 1.0


class Loss(Strict):
    """The terms of a stage's loss."""

    triplet: Triplet | None = None
    reconstruction: Reconstruction | None = None

    @model_validator(mode="after")
    def _some(self) -> Loss:
        if self.triplet is None and self.reconstruction is None:
            raise ValueError("name at least one of triplet, reconstruction")
        return self


class Optimizer(Strict):
    """A torch optimizer over the trained parts."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 3e-4
    weight_decay: Length = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
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
        if self.decay and self.cosine:
            raise ValueError("give decay or cosine, not both")
        if self.decay and not self.final:
            raise ValueError("exponential decay needs final, the learning rate it ends at, above 0")
        if not self.epochs:
            raise ValueError("give the length in epochs of at least one of warmup, constant, decay, cosine")
        return self


# One owner per fact: these live in the recipe's own keys.
OWNED = {
    "train_batch_size": "data.P/K or data.batch", "train_micro_batch_size_per_gpu": "data.P/K or data.batch",
    "gradient_accumulation_steps": "accumulate", "gradient_clipping": "clip", "optimizer": "optimizer",
    "scheduler": "schedule", "bf16": "precision", "fp16": "precision", "torch_autocast": "precision",
    "zero_optimization": "deepspeed.zero_stage, deepspeed.zero",
}


class DeepSpeed(BaseModel):
    """``zero_stage``, more keys of DeepSpeed's ``zero_optimization`` under ``zero``, and any other key of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    zero_stage: Literal[0, 1, 2, 3] = 0
    zero: dict[str, Any] = {}

    @model_validator(mode="after")
    def _owned(self) -> DeepSpeed:
        for key in self.model_extra or {}:
            if key in OWNED:
                raise ValueError(f"{key} has an owner elsewhere in the recipe: set {OWNED[key]}")
        if "stage" in self.zero:
            raise ValueError("zero.stage has an owner elsewhere in the recipe: set deepspeed.zero_stage")
        return self


class Stage(Strict):
    """One stage: (parts, data, loss), where its weights come from, and how it is optimised."""

    init: str
    """``hub``, ``random``, a weights file, an earlier stage, or an export of another run."""
    reinit: list[PartName] = []
    parts: dict[PartName, Use]
    data: StageData
    loss: Loss
    epochs: Positive | None = None
    schedule: Schedule | None = None
    optimizer: Optimizer = Optimizer()
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: Positive | None = None
    accumulate: Count = 1
    deepspeed: DeepSpeed = DeepSpeed()
    batch_norm: dict[PartName, Literal["batch", "running"]] = {}
    sync_batch_norm: bool = True
    cache_features: bool = True
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
    def lr_schedule(self) -> Schedule:
        """The schedule, where only ``epochs`` is given a constant one."""
        return self.schedule or Schedule(constant=self.epochs or 1)

    def trained(self) -> list[PartName]:
        """Parts that train, in the model's order."""
        return [part for part in PARTS if self.parts[part] == "train"]

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        wrong = []
        missing = [part for part in PARTS if part not in self.parts]
        if missing:
            raise ValueError(f"parts must say train, frozen or absent of every part; {', '.join(missing)} missing")
        if (self.epochs is None) == (self.schedule is None):
            wrong.append("give either epochs or schedule")
        for part in ("backbone", "embedding"):
            if self.parts[part] == "absent":
                wrong.append(f"{part} cannot be absent")
        if not self.trained():
            wrong.append("no part trains; set at least one part to train")
        if self.loss.triplet and not self.data.labelled:
            wrong.append("the triplet loss needs identities; give data.P and data.K instead of data.batch")
        if self.loss.triplet and self.data.K == 1:
            wrong.append("the triplet loss needs K of at least 2")
        if self.loss.triplet and 1 in (self.data.P.values() if isinstance(self.data.P, dict) else [self.data.P]):
            wrong.append("the triplet loss needs P of at least 2")
        if self.loss.triplet and self.accumulate > 1:
            wrong.append("a mined loss sees the whole global batch, so accumulate must be 1")
        needs = ("nuisance", "decoder")
        if self.loss.reconstruction and any(self.parts[part] == "absent" for part in needs):
            wrong.append("reconstruction needs nuisance and decoder; they cannot be absent")
        if not self.loss.reconstruction and any(self.parts[part] == "train" for part in needs):
            wrong.append("nuisance and decoder only train with a reconstruction loss")
        if not self.loss.triplet and self.data.labelled:
            wrong.append("without a triplet loss labels are not used; give data.batch instead of data.P and data.K")
        for part in self.reinit:
            if self.parts[part] == "absent":
                wrong.append(f"reinit names {part}, which is absent")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Scoring(Strict):
    """How query and gallery are scored."""

    tta: TTA = "flip"
    batch: Count = 256


class Recipe(Strict):
    """A whole run."""

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    model: Model = Model()
    data: Data
    run: list[Name] = Field(min_length=1)
    evaluate: dict[str, Name] = {}
    """Row of the final table → the stage whose export is scored on the target."""
    scoring: Scoring = Scoring()
    stages: dict[Name, Stage]

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        wrong = []
        for position, name in enumerate(self.run):
            if name not in self.stages:
                wrong.append(f"run names the stage {name}, which stages lacks (has {', '.join(self.stages)})")
            elif name in self.run[:position]:
                wrong.append(f"run names the stage {name} twice")
            elif self.stages[name].init in self.stages and self.stages[name].init not in self.run[:position]:
                wrong.append(f"stages.{name}.init is the stage {self.stages[name].init}, which run does not list before it")
        wrong += [f"evaluate.{row} is the stage {stage}, which run lacks"
                  for row, stage in self.evaluate.items() if stage not in self.run]
        for name, stage in self.stages.items():
            if self.model.nuisance.per != "shared" and stage.parts["nuisance"] == "train" and stage.deepspeed.zero_stage:
                wrong.append(f"stages.{name}.deepspeed.zero_stage is {stage.deepspeed.zero_stage}, but nuisance heads that a batch "
                             "lacks stay unmoved at stage 0 only; set it to 0")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
