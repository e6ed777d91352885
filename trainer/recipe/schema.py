"""The keys of a recipe, their types and defaults, and the rules between them.

The keys of a stage are in `stage.py`, and those of its sections in `data.py`, `calibration.py`, `optimizer.py`,
`losses/` and `clustering/`.

This module does not import torch, DALI or DeepSpeed, so that a login node checks a job in a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from embae.datasets.fields import Count, Name, Positive, Strict, Whole, checked
from embae.trainer.losses.parts import PARTS
from embae.trainer.recipe.data import Data
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.scoring import Scoring
from embae.trainer.recipe.stage import Stage

# Values of init, and names of other files and folders in a run folder.
RESERVED = ("hub", "random", "cache", "evaluation", "tensorboard", "stopped", "failed", "resumed")


class Checkpoints(Strict):
    """Checkpoints, from which a killed run resumes."""

    every: Count = 500
    """Steps between two checkpoints; another is written before scoring, on a signal, and at the end of a stage."""
    keep: Annotated[int, Field(ge=2, strict=True)] = 2
    """Number of newest checkpoints that are kept for each stage: if one is damaged, the run resumes from another."""


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
    """Seconds after which a rank stops waiting for another rank that does not answer."""
    stages: dict[Name, Stage]

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        return checked(self, [*self._wrong_order(), *self._wrong_stages()])

    def _wrong_order(self) -> Iterator[str]:
        for position, name in enumerate(self.run):
            if name not in self.stages:
                yield f"run: names the stage {name}, which is not in stages (it has {', '.join(self.stages)})"
            elif name in self.run[:position]:
                yield f"run: names the stage {name} twice; remove one"
        for row, stage in self.evaluate.items():
            if stage not in self.run:
                yield f"evaluate.{row}: is the stage {stage}, which is not in run"
            elif stage in self.stages and self.stages[stage].cluster:
                yield f"evaluate.{row}: is the stage {stage}, which computes labels and not a model"

    def _wrong_stages(self) -> Iterator[str]:
        for name, stage in self.stages.items():
            if name in RESERVED:
                yield f"stages.{name}: the name is reserved; choose one other than {', '.join(RESERVED)}"
            if name in self.run and stage.data.from_ != "target" and not self.data.sources:
                yield f"data.sources: names no dataset, but the stage {name} reads sources; name at least one"
            if labels := stage.data.labels:
                yield from self._wrong_labels(name, labels)
            zero, several = stage.deepspeed.zero_stage, self.model.nuisance.per != "shared"
            if several and stage.use("nuisance") == "train" and zero:
                yield (f"stages.{name}.deepspeed.zero_stage: is {zero}, but only ZeRO stage 0 leaves the nuisance "
                       "heads of cameras or datasets that are not in a batch unchanged; set it to 0")
            if several and stage.use("nuisance") == "train" and stage.ema:
                yield (f"stages.{name}.ema: nuisance heads of cameras or datasets that are not in a batch must stay "
                       "unchanged, but their average would change; leave it out")
            if self.model.head == "bnneck" and stage.loss and stage.loss.before_neck:
                yield from self._wrong_neck(name, stage)
            if stage.init not in self.stages or name not in self.run:
                continue
            if stage.init not in self.run[:self.run.index(name)]:
                yield f"stages.{name}.init: is the stage {stage.init}, which run does not list before it"
                continue
            if self.stages[stage.init].cluster:
                yield f"stages.{name}.init: is the stage {stage.init}, which computes labels and not a model"
                continue
            available = [part for part in PARTS if self.stages[stage.init].use(part) != "absent"]
            for part in PARTS:
                if part in stage.reinit and part not in available:
                    yield (f"stages.{name}.reinit: {stage.init} has no {part}, so it starts from new weights; "
                           "leave it out")
                elif stage.use(part) == "frozen" and part not in available:
                    yield (f"stages.{name}.parts.{part}: is frozen, but its init {stage.init} has none; set it to "
                           "train or absent")

    def _wrong_neck(self, name: str, stage: Stage) -> Iterator[str]:
        loss = stage.loss
        assert loss is not None  # checked by the caller
        term = loss.before_neck[0]
        before = f"with model.head: bnneck the {term} loss uses the features before the neck"
        if stage.use("backbone") != "train":
            yield f"stages.{name}.loss.{term}: {before}, but the backbone, which computes them, does not train"
        elif stage.use("embedding") == "train" and loss.terms() == loss.before_neck:
            yield f"stages.{name}.parts.embedding: {before}, so no loss trains the embedding; add loss.identity"

    def _wrong_labels(self, name: str, labels: str) -> Iterator[str]:
        key = f"stages.{name}.data.labels"
        if labels not in self.stages or not self.stages[labels].cluster:
            yield f"{key}: is {labels}, which is not a stage with cluster"
        elif name in self.run and labels not in self.run[:self.run.index(name)]:
            yield f"{key}: is the stage {labels}, which run does not list before it"

    def datasets(self, stage: Stage) -> list[str]:
        """The datasets that a stage reads, in the order that numbers them, the target last."""
        sources = [] if stage.data.from_ == "target" else self.data.sources
        return [*sources, *([] if stage.data.from_ == "sources" else [self.data.target])]

    def ancestors(self, stage: str) -> list[str]:
        """A stage's ``init``, the ``init`` of that, and so on, while they are stages of this recipe."""
        stages: list[str] = []
        while (stage := self.stages[stage].init) in self.stages:
            stages.append(stage)
        return stages

    def lineage(self, stage: str) -> list[str]:
        """A stage and all stages that its weights or pseudo-labels come from, in the order of the run."""
        stages = {stage}
        for name in reversed(self.run):  # a stage comes after those it depends on
            if name in stages:
                stages |= {self.stages[name].init, self.stages[name].data.labels or ""}
        return [name for name in self.run if name in stages]

    def start(self, row: str) -> str | None:
        """The row of the model that a row's model started from: the nearest ancestor with scores, if any."""
        rows = {stage: name for name, stage in self.evaluate.items()}
        return next((rows[stage] for stage in self.ancestors(self.evaluate[row]) if stage in rows), None)
