"""What a recipe may say: every key, its type, its default and what must hold between keys.

Stages are in `stage_schema.py`, and what these hold in `data_keys.py`, `loss_keys.py`, `pass_keys.py` and
`optimizer_keys.py`.

Imports neither torch, DALI nor DeepSpeed, so that a login node checks a job in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, model_validator

from embae.datasets.cache import Cache
from embae.datasets.remote import Url, location
from embae.trainer.keys import Count, Flag, Name, Positive, Strict, Whole, checked
from embae.trainer.refined import MOST, Refined
from embae.trainer.stage_schema import PARTS, Stage

TTA = Literal["none", "flip", "ten-crop"]
# Values of init, and what lies beside the stages in a run folder.
RESERVED = ("hub", "random", "cache", "evaluation", "tensorboard", "stopped", "failed", "resumed")


def _located(value: Any, given: ValidationInfo) -> Path | Url:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"found {value!r:.80}; wanted the path of a folder, or a url")
    cache = given.data.get("cache", CacheKeys())
    return location(value, Cache(cache.folder, cache.gib))


Side = Annotated[int, Field(ge=1, le=4096, strict=True)]  # pixels


class Nuisance(Strict):
    """The nuisance heads: how wide, and how many."""

    dim: Count = 128
    per: Literal["shared", "dataset", "camera"] = "shared"


class Model(Strict):
    """The model's parts."""

    backbone: str = "mobilenetv1_100"
    pooling: Literal["avg", "gem"] = "avg"
    """Of the last feature map: its mean, or the generalised mean with an exponent that trains with the backbone."""
    last_stride: Literal[1, 2] = 2
    """Of a ResNet's last stage: 1 leaves a feature map twice as high and wide."""
    head: Literal["mlp", "bnneck"] = "mlp"
    """The embedding: dense, ReLU, batch norm, dense (arXiv 1807.10591 §3.1), sized by ``embedding`` and ``hidden``;
    or a batch norm of the features, with a classifier behind it and the triplet loss before it (arXiv 1903.07071)."""
    unit: Flag = False
    """Whether embeddings that leave the model have length 1: distances then rank as the cosine does."""
    embedding: Count = 128
    hidden: Count = 1024
    nuisance: Nuisance = Nuisance()


class CacheKeys(Strict):
    """Where copies of far shards lie on each machine; see `embae.datasets.cache.Cache`."""

    folder: Path | None = None
    gib: Positive = 20


class Data(Strict):
    """Where the images are, and how they are read."""

    cache: CacheKeys = CacheKeys()  # before root, which takes it along
    root: Annotated[Path | Url, PlainSerializer(str), PlainValidator(_located)] = Path("shards")
    """A folder, or a url."""
    sources: list[Name] = Field(default_factory=list)
    """None where every stage of the run reads the target alone."""
    target: Name
    image: tuple[Side, Side] = (256, 128)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    loader: Literal["dali", "webdataset"] = "dali"
    threads: Count | None = None
    synthetic: dict[Name, dict[str, int | str]] = Field(default_factory=dict)
    """Datasets to draw and shard if they are used and not there: name → options of ``embae shard synthetic``."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        wrong = [f"sources: {name} stands here twice" for name in twice]
        if self.synthetic and isinstance(self.root, Url):
            wrong.append("synthetic: is drawn into a folder, and root is a url; give one of them")
        return checked(self, wrong)


class Scoring(Strict):
    """How query and gallery are scored."""

    tta: TTA = "flip"
    batch: Count = 256
    rerank: bool = False
    """Whether by k-reciprocal re-ranking (Zhong et al. 2017) instead of plain distances."""
    expand: Annotated[int, Field(ge=0, le=MOST, strict=True)] = 0
    """By how many of its nearest images each query is expanded before (Chum et al. 2007)."""

    @property
    def refined(self) -> Refined:
        """What is done to a ranking by plain distances."""
        return Refined(self.rerank, self.expand)


class Checkpoints(Strict):
    """What a killed run goes on from."""

    every: Count = 500
    """Steps between two; one more is written before scores are taken, on a signal, and at a stage's end."""
    keep: Annotated[int, Field(ge=2, strict=True)] = 2
    """How many of a stage stay, the newest ones: should one be damaged, there is another."""


class Recipe(Strict):
    """A whole run."""

    name: Name
    seed: Whole = 0
    model: Model = Model()
    data: Data
    run: list[Name] = Field(min_length=1)
    evaluate: dict[str, Name] = Field(default_factory=dict)
    """Row of the final table → the stage whose export is scored on the target."""
    scoring: Scoring = Scoring()
    checkpoints: Checkpoints = Checkpoints()
    timeout: Positive = 600
    """Seconds after which a rank gives up waiting for one that is silent."""
    stages: dict[Name, Stage]

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        return checked(self, [*self._wrong_order(), *self._wrong_stages()])

    def _wrong_order(self) -> Iterator[str]:
        for position, name in enumerate(self.run):
            if name not in self.stages:
                yield f"run: names the stage {name}, which stages lacks (it has {', '.join(self.stages)})"
            elif name in self.run[:position]:
                yield f"run: names the stage {name} twice"
        for row, stage in self.evaluate.items():
            if stage not in self.run:
                yield f"evaluate.{row}: is the stage {stage}, which run lacks"
            elif stage in self.stages and self.stages[stage].cluster:
                yield f"evaluate.{row}: is the stage {stage}, which makes labels and no model"

    def _wrong_stages(self) -> Iterator[str]:
        for name, stage in self.stages.items():
            if name in RESERVED:
                yield f"stages.{name}: the name has another meaning; take one that is not among {', '.join(RESERVED)}"
            if name in self.run and stage.data.from_ != "target" and not self.data.sources:
                yield f"data.sources: names none, but the stage {name} reads them"
            if labels := stage.data.labels:
                yield from self._wrong_labels(name, labels)
            zero, several = stage.deepspeed.zero_stage, self.model.nuisance.per != "shared"
            if several and stage.use("nuisance") == "train" and zero:
                yield (f"stages.{name}.deepspeed.zero_stage: is {zero}, but nuisance heads that a batch lacks stay "
                       "unmoved at stage 0 only; set it to 0")
            if several and stage.use("nuisance") == "train" and stage.ema:
                yield (f"stages.{name}.ema: nuisance heads that a batch lacks stay unmoved, and their average would "
                       "move; leave it out")
            if self.model.head == "bnneck" and stage.loss and stage.loss.triplet:
                yield from self._wrong_neck(name, stage)
            if stage.init not in self.stages or name not in self.run:
                continue
            if stage.init not in self.run[:self.run.index(name)]:
                yield f"stages.{name}.init: is the stage {stage.init}, which run does not list before it"
                continue
            if self.stages[stage.init].cluster:
                yield f"stages.{name}.init: is the stage {stage.init}, which makes labels and no model"
                continue
            has = [part for part in PARTS if self.stages[stage.init].use(part) != "absent"]
            for part in PARTS:
                if part in stage.reinit and part not in has:
                    yield f"stages.{name}.reinit: {stage.init} has no {part}, so it starts afresh anyway; leave it out"
                elif stage.use(part) == "frozen" and part not in has:
                    yield f"stages.{name}.parts.{part}: is frozen, but {stage.init}, where it comes from, has none"

    def _wrong_neck(self, name: str, stage: Stage) -> Iterator[str]:
        before = "with model.head: bnneck the triplet loss looks at the features, before the neck"
        if stage.use("backbone") != "train":
            yield f"stages.{name}.loss.triplet: {before}, and the backbone, which makes them, does not train"
        elif stage.use("embedding") == "train" and stage.loss and stage.loss.terms() == ["triplet"]:
            yield f"stages.{name}.parts.embedding: {before}, and no other loss trains it; add loss.identity"

    def _wrong_labels(self, name: str, labels: str) -> Iterator[str]:
        key = f"stages.{name}.data.labels"
        if labels not in self.stages or not self.stages[labels].cluster:
            yield f"{key}: is {labels}, which is no stage with cluster"
        elif name in self.run and labels not in self.run[:self.run.index(name)]:
            yield f"{key}: is the stage {labels}, which run does not list before it"

    def datasets(self, stage: Stage) -> list[str]:
        """The datasets that a stage reads, in the order that numbers them."""
        sources = [] if stage.data.from_ == "target" else self.data.sources
        return [*sources, *([] if stage.data.from_ == "sources" else [self.data.target])]

    def ancestors(self, stage: str) -> list[str]:
        """A stage's ``init``, the ``init`` of that, and so on, as far as they are stages of this recipe."""
        found: list[str] = []
        while (stage := self.stages[stage].init) in self.stages:
            found.append(stage)
        return found

    def lineage(self, stage: str) -> list[str]:
        """A stage and all that it comes from, by weights or pseudo-labels, in the order of the run."""
        found = {stage}
        for name in reversed(self.run):  # what a stage comes from stands before it
            if name in found:
                found |= {self.stages[name].init, self.stages[name].data.labels or ""}
        return [name for name in self.run if name in found]

    def start(self, row: str) -> str | None:
        """The row of the model that a row's model started from: the nearest ancestor that is scored, if any."""
        rows = {stage: name for name, stage in self.evaluate.items()}
        return next((rows[stage] for stage in self.ancestors(self.evaluate[row]) if stage in rows), None)
