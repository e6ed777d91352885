"""What a recipe may say: every key, its type, its default and what must hold between keys.

Stages are in `stage_schema.py`, and what these hold in `data_keys.py`, `loss_keys.py`, `pass_keys.py` and
`optimizer_keys.py`.

Imports neither torch, DALI nor DeepSpeed, so that a login node checks a job in a moment.
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

# Values of init, and what lies beside the stages in a run folder.
RESERVED = ("hub", "random", "cache", "evaluation", "tensorboard", "stopped", "failed", "resumed")


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
            if self.model.head == "bnneck" and stage.loss and stage.loss.before_neck:
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
        loss = stage.loss
        assert loss is not None  # checked by the caller
        term = loss.before_neck[0]
        before = f"with model.head: bnneck the {term} loss looks at the features, before the neck"
        if stage.use("backbone") != "train":
            yield f"stages.{name}.loss.{term}: {before}, and the backbone, which makes them, does not train"
        elif stage.use("embedding") == "train" and loss.terms() == loss.before_neck:
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
