"""What a recipe may say of one stage, and what must hold between its keys.

Imports neither torch, DALI nor DeepSpeed, so that a login node checks a job in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from embae.datasets.augment import Augment

PartName = Literal["backbone", "embedding", "nuisance", "decoder", "classifier", "discriminator"]
PARTS: tuple[PartName, ...] = ("backbone", "embedding", "nuisance", "decoder", "classifier", "discriminator")
SELDOM: tuple[PartName, ...] = ("classifier", "discriminator")  # absent where a recipe does not name them
Use = Literal["train", "frozen", "absent"]

# Strict: else true would be a 1 and "18" an 18.
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Length = Annotated[float, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# Of recipes, stages and datasets: they become folders, and a dot would part them in an override.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class Strict(BaseModel):
    """Unknown keys are errors: a typo never becomes a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def checked(model: M, wrong: list[str]) -> M:
    """What a validator returns; each mistake is a line ``key: sentence``, the key relative to the model."""
    if wrong:
        raise ValueError("\n".join(wrong))
    return model


class AugmentKeys(Strict):
    """See `embae.datasets.Augment`."""

    flip: Flag = False
    crop: Flag = False
    pad: Whole = 0
    erase: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0


class StageData(Strict):
    """What a stage reads: P × K for labelled stages, a plain global batch for the others."""

    from_: Literal["sources", "target", "all"] = Field(alias="from")
    labels: Name | None = None
    """The clustering stage whose pseudo-labels the target's images bear."""
    P: Count | dict[Name, Count] | None = None
    K: Count | None = None
    batch: Count | None = None
    weights: dict[Name, Positive] | None = None
    mix: Flag = False
    window: Count | None = None
    """Shards of a dataset that identities are drawn from at a time, for data that is far away; null: all of them.
    Of a target with pseudo-labels always all."""
    augment: AugmentKeys = AugmentKeys()

    @property
    def labelled(self) -> bool:
        """Whether batches are made of identities."""
        return self.batch is None

    @model_validator(mode="after")
    def _shape(self) -> StageData:
        wrong = []
        if self.labels and (self.from_ == "sources" or self.batch is not None):
            wrong.append("labels: pseudo-labels are the target's; they go with from: target or all, P and K")
        if (self.batch is None) == (self.P is None and self.K is None):
            wrong.append("batch: give either P and K (labelled images) or batch (any images)")
        elif self.batch is None and (self.P is None or self.K is None):
            wrong.append(f"{'P' if self.P is None else 'K'}: missing; a labelled stage needs both P and K")
        for key in ("weights", "mix", "window"):
            if self.batch is not None and getattr(self, key):
                wrong.append(f"{key}: belongs to labelled stages; plain batches are shuffled over all images")
        if self.labels and self.window and (self.from_ == "target" or self.mix):
            wrong.append("window: the images of a pseudo-label lie in any shards; leave it out")
        if self.mix and self.weights:
            wrong.append("weights: datasets do not take turns where mix is true; give one of them")
        if self.mix and isinstance(self.P, dict):
            wrong.append("P: give one number; with mix: true a batch is of all datasets")
        return checked(self, wrong)


class Triplet(Strict):
    """Triplet loss over the global batch; a numeric margin gives the hinge, ``soft`` log(1 + exp(d_ap − d_an))."""

    mining: Literal["batch-hard", "batch-all"] = "batch-hard"
    margin: Literal["soft"] | Positive = "soft"
    batch_all_epochs: Length = 0.0
    """How long batch-all mines first: from random weights batch-hard collapses."""
    weight: Positive = 1.0


class Reconstruction(Strict):
    """Mean squared error between the decoder's output and the backbone's features."""

    standardised: Flag = False
    """Features less their mean, divided by their deviation over the stage's images: each then counts alike."""
    weight: Positive = 1.0


class Identity(Strict):
    """Cross-entropy of the classifier over the identities of the stage's images."""

    smoothing: Share = 0.0
    weight: Positive = 1.0


class Adversarial(Strict):
    """The code [z, v] is made to look like noise to a discriminator; the stage's terms then update in turn."""

    weight: Positive = 1.0


class Loss(Strict):
    """The terms of a stage's loss."""

    triplet: Triplet | None = None
    identity: Identity | None = None
    reconstruction: Reconstruction | None = None
    adversarial: Adversarial | None = None

    def terms(self) -> list[str]:
        """Names of the terms that are there."""
        return [name for name, term in self if term]

    @model_validator(mode="after")
    def _some(self) -> Loss:
        return checked(self, [] if self.terms() else [f"name at least one of {', '.join(Loss.model_fields)}"])


class Calibrate(Strict):
    """Statistics of the target's images put into the model; nothing is trained."""

    what: Literal["batch-norm", "features", "embedding"]
    """Batch norms of the whole network; mean and deviation of the features; mean of the embeddings."""
    per: Literal["dataset", "camera"] = "camera"

    @model_validator(mode="after")
    def _camera(self) -> Calibrate:
        wrong = self.per == "dataset" and self.what != "batch-norm"
        return checked(self, [f"per: {self.what} is calibrated by camera; dataset goes with batch-norm"] * wrong)


class KMeans(Strict):
    """k-means; images stay whose features are near the centre of their cluster (Fan et al. 2017)."""

    clusters: Count
    similarity: Fraction = 0.85
    """Cosine that an image must exceed to stay."""
    smallest: Count = 2
    """Clusters with fewer images left are left out."""


class DBSCAN(Strict):
    """DBSCAN on k-reciprocal Jaccard distances (Zhong et al. 2017)."""

    eps: Fraction = 0.6
    min_samples: Count = 4
    k1: Count = 30
    k2: Count = 6


class Cluster(Strict):
    """Pseudo-labels for the target's images, from clusters of their embeddings."""

    kmeans: KMeans | None = None
    dbscan: DBSCAN | None = None

    @model_validator(mode="after")
    def _one(self) -> Cluster:
        one = (self.kmeans is None) != (self.dbscan is None)
        return checked(self, [] if one else ["give one of kmeans, dbscan"])


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
            wrong.append("final: nothing falls to it; give decay or cosine")
        if not self.epochs:
            wrong.append("give the length in epochs of at least one of warmup, constant, decay, cosine")
        return checked(self, wrong)


# One owner per fact: these live in the recipe's own keys.
OWNED = {
    "train_batch_size": "data.P/K or data.batch", "train_micro_batch_size_per_gpu": "data.P/K or data.batch",
    "gradient_accumulation_steps": "accumulate", "gradient_clipping": "clip", "optimizer": "optimizer",
    "scheduler": "schedule", "bf16": "precision", "fp16": "precision", "amp": "precision",
    "torch_autocast": "precision", "zero_optimization": "deepspeed.zero_stage, deepspeed.zero",
}


class DeepSpeed(BaseModel):
    """``zero_stage``, more keys of DeepSpeed's ``zero_optimization`` under ``zero``, and any other key of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    zero_stage: Literal[0, 1, 2, 3] = 0
    zero: dict[str, Any] = {}

    def bucket(self, gradients: int) -> int:
        """Numbers of gradients that are exchanged at a time, which ZeRO keeps room for: all, but 500 million at most.

        DeepSpeed's own default, 500 million whatever the model, takes gigabytes beside one of a few million.
        """
        return int(self.zero.get("reduce_bucket_size", min(gradients, 500_000_000)))

    @model_validator(mode="after")
    def _owned(self) -> DeepSpeed:
        owned = {key: OWNED[key] for key in self.model_extra or {} if key in OWNED}
        if "stage" in self.zero:
            owned["zero.stage"] = "deepspeed.zero_stage"
        return checked(self, [f"{key}: has an owner elsewhere in the recipe; set {owned[key]}" for key in owned])


KINDS = ("loss", "calibrate", "cluster")
LENGTHS = ("epochs", "steps", "schedule")


class Stage(Strict):
    """One stage: (parts, data, loss), where its weights come from, and how it is optimised.

    Instead of a loss it may calibrate the model on its images, or cluster them into pseudo-labels.
    """

    init: str
    """``hub``, ``random``, a weights file, an earlier stage, or an export of another run."""
    reinit: list[PartName] = []
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
    batch_norm: dict[PartName, Literal["batch", "running"]] = {}
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
        flips = Augment(**self.data.augment.model_dump()).at_most_flip
        return self.cache_features and self.use("backbone") == "frozen" and flips

    def use(self, part: PartName) -> Use:
        """What a part does."""
        return self.parts.get(part, "absent")

    def trained(self) -> list[PartName]:
        """Parts that train, in the model's order."""
        return [part for part in PARTS if self.use(part) == "train"]

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            return checked(self, [f"{given[1] if given else 'loss'}: give one of {', '.join(KINDS)}"])
        rules = [self._wrong_parts(), *([self._wrong_training(), self._wrong_loss(self.loss)] if self.loss else
                                        [self._wrong_untrained()])]
        return checked(self, [line for rule in rules for line in rule])

    def _wrong_parts(self) -> Iterator[str]:
        missing = [part for part in PARTS if part not in (*self.parts, *SELDOM)]
        if missing:
            yield f"parts: wanted train, frozen or absent of every part; missing: {', '.join(missing)}"
        if self.parts.get("backbone") == "absent":
            yield "parts.backbone: cannot be absent"
        for part in self.reinit:
            if self.use(part) == "absent":
                yield f"reinit: names {part}, which is absent"

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

    def _wrong_loss(self, loss: Loss) -> Iterator[str]:
        data = self.data
        mined = "triplet" if loss.triplet else "identity" if loss.identity else None
        if mined and not data.labelled:
            yield f"loss.{mined}: needs identities; give data.P and data.K instead of data.batch"
        if loss.triplet:
            if data.K == 1:
                yield "data.K: the triplet loss needs at least 2"
            if 1 in (data.P.values() if isinstance(data.P, dict) else [data.P]):
                yield "data.P: the triplet loss needs at least 2"
            if self.accumulate > 1:
                yield "accumulate: a mined loss sees the whole global batch, so this must be 1"
        if not mined and data.labelled:
            yield "data: without a triplet or identity loss labels are not used; give batch instead of P and K"
        if loss.adversarial:
            if self.deepspeed.zero_stage:
                yield "deepspeed.zero_stage: updates in turn leave the other parts unmoved at stage 0 only; set it to 0"
            if self.accumulate > 1:
                yield "accumulate: must be 1 where updates take turns"
            if not loss.reconstruction:
                yield "loss.adversarial: goes with reconstruction"
            if self.use("discriminator") == "frozen":
                yield "parts.discriminator: is frozen, but adversarial trains it; set it to train"
            for term in loss.terms():
                moved = [part for part in self.trained() if part != "discriminator"
                         and term in NEEDED_BY.get(part, loss.terms())]
                if not moved:
                    yield f"loss.{term}: has updates of its own here, and none of the parts that it goes through trains"
        if loss.reconstruction and loss.reconstruction.standardised and not self.caches:
            yield ("loss.reconstruction.standardised: needs cached features to take means of; freeze the backbone, "
                   "leave cache_features on, and augment by a flip at most")
        if loss.reconstruction and self.use("embedding") == "absent":
            yield "parts.embedding: reconstruction needs it; it cannot be absent"
        for part, terms in NEEDED_BY.items():
            use, wanting = self.use(part), [term for term in terms if getattr(loss, term)]
            if wanting and use == "absent" and part != "nuisance":  # without it, z alone is decoded
                yield f"parts.{part}: {wanting[0]} needs it; it cannot be absent"
            if not wanting and use == "train":
                yield f"parts.{part}: only trains with a loss of {' or '.join(terms)}"


# What each part is trained by; the backbone goes with any.
NEEDED_BY: dict[PartName, tuple[str, ...]] = {
    "nuisance": ("reconstruction", "adversarial"), "decoder": ("reconstruction",), "classifier": ("identity",),
    "discriminator": ("adversarial",),
}
