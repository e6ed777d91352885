"""Scores the rows of a run on its target, once each, and measures why they are what they are.

    <stage>/evaluation/<dataset>.json, .npz       a model's scores and embeddings; where stages are shared, so are these
    <stage>/evaluation/<dataset>-probes.json      what `examine.py` measures
    <run>/evaluation/<dataset>.json               the rows side by side
    <run>/evaluation/<dataset>-probes.json
    <run>/evaluation/<dataset>-<stage>.npz        raw embeddings of query and gallery, in the order of the index
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.view import View
from embae.trainer.evaluation.codes import Codes, codes, measure
from embae.trainer.evaluation.evaluate import evaluate
from embae.trainer.inference.features import cached_features, feature_mean_std
from embae.trainer.inference.options import Inference
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import SavedModel
from embae.trainer.monitoring.projector import write_projector
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.run_datasets import can_score
from embae.trainer.runs.score_table import SHOWN, are_numbers, are_scores, score_table, write_scores
from embae.trainer.runs.stage_folder import EXPORT, read_cost
from embae.trainer.runtime.distributed import broadcast_object


def score_model(context: RunContext, model: EmbAE, stage: str, step: int, target: Index,
                keep: Path | None = None) -> dict[str, Any]:
    """Scores a model on the target, and records it; see `evaluate` for `keep` and what it returns."""
    recipe, monitor = context.recipe, context.monitor
    inference = Inference.of_recipe(recipe, context.world, context.cache)
    found = evaluate(model, target, inference, refined=recipe.scoring.refined, keep=keep)
    monitor.record("eval", stage, step, {"dataset": target.name, **found})
    monitor.say(_line(found, stage, step, target))
    return found


def score_run(context: RunContext, target: Index) -> None:
    """Scores every row of a finished run that was not scored before, writes and prints the table.

    Raises:
        DataError: No query has a match.
        FloatingPointError: An embedding is not finite.
    """
    recipe, run, monitor = context.recipe, context.folder, context.monitor
    if not recipe.evaluate:
        return
    if not can_score(target):
        monitor.say(f"{target.name} has no labelled query and gallery, so there is nothing to score. "
                    f"The model is in {run / recipe.run[-1] / EXPORT}")
        return
    scorer = _Scorer(context, target)
    rows = {row: scorer.scores(stage) for row, stage in recipe.evaluate.items()}
    probes = {row: scorer.probes(row) for row in rows} if target.count("train") else {}
    if context.world.first:
        folder = run / "evaluation"
        write_scores(folder / f"{target.name}.json", target.name, recipe.scoring.tta, rows, recipe.scoring.refined)
        _write(folder / f"{target.name}-probes.json", probes)
        for stage in recipe.evaluate.values():
            shutil.copyfile(scorer.path(stage).with_suffix(".npz"), folder / f"{target.name}-{stage}.npz")
    monitor.say("\n" + score_table(target.name, recipe.scoring.tta, rows, recipe.scoring.refined))
    dist.barrier()


# What TensorBoard's HParams has beside the stage's own keys: it shows the first by name, so none that is the machine's.
_TOLD: Any = {"seed": True, "model": True, "scoring": True, "data": {"image", "sources", "target"}}


class _Scorer:
    """Scores and probes of a run's stages, read where they are, taken where not."""

    def __init__(self, context: RunContext, target: Index):
        self._context, self._recipe, self._run = context, context.recipe, context.folder
        self._world, self._monitor, self._target = context.world, context.monitor, target
        self._codes = cache(self._take_codes)

    def path(self, stage: str) -> Path:
        """Where a stage's scores are kept."""
        return self._run / stage / "evaluation" / f"{self._target.name}.json"

    def scores(self, stage: str) -> dict[str, Any]:
        """A stage's scores."""
        path, steps = self.path(stage), read_cost(self._run, stage).steps

        def take() -> dict[str, Any]:
            self._monitor.drop_record("eval", stage, steps)
            keys = self._recipe.model_dump(mode="json", by_alias=True, include=_TOLD)
            own = self._recipe.stages[stage].model_dump(mode="json", by_alias=True, exclude_none=True)
            self._monitor.record_settings(stage, {**keys, "stage": own})
            found = score_model(self._context, self._model(stage), stage, steps, self._target,
                                path.with_suffix(".npz"))
            if self._world.first:
                with np.load(path.with_suffix(".npz")) as kept:
                    write_projector(self._run / "tensorboard" / stage, self._target, kept["query"], kept["gallery"],
                                    self._recipe.seed)
            return found

        how = self._recipe.scoring
        asked = {"tta": how.tta, "loader": self._recipe.data.loader, **asdict(how.refined)}
        return self._kept(path, asked, take, are_scores)

    def probes(self, row: str) -> dict[str, float]:
        """What a row's codes hold, and how far they are from its start's."""
        stage, start = self._recipe.evaluate[row], self._recipe.start(row)
        before = self._recipe.evaluate[start] if start else None

        def take() -> dict[str, float]:
            view = View([self._target], "train")
            found = measure(self._codes(stage), self._codes(before) if before else None, view, self._recipe.seed)
            steps = read_cost(self._run, stage).steps
            self._monitor.drop_record("probe", stage, steps)
            self._monitor.record("probe", stage, steps, found)
            return found

        path = self.path(stage).with_name(f"{self._target.name}-probes.json")
        return self._kept(path, {"start": before, "seed": self._recipe.seed}, take, are_numbers)

    def _kept(self, path: Path, asked: dict[str, Any], take: Callable[[], dict[str, Any]],
              fits: Callable[[Any], bool]) -> dict[str, Any]:
        asked = {"fingerprint": self._target.fingerprint, **asked}
        found = broadcast_object(read_kept(path, asked, fits) if self._world.first else None)
        if found is None:
            found = take()
            if self._world.first:
                _write(path, {**asked, "found": found})
        return found

    def _model(self, stage: str) -> EmbAE:
        return SavedModel.open(self._run / stage / EXPORT).restore().to(self._world.device)

    def _take_codes(self, stage: str) -> Codes:
        recipe, view, model = self._recipe, View([self._target], "train"), self._model(stage)
        bf16 = recipe.stages[recipe.run[-1]].precision == "bf16"  # so that what a stage has cached serves here
        inference = Inference.of_recipe(recipe, self._world, self._run / "cache")
        cached = cached_features(model, view, inference, bf16=bf16)
        loss, scale = recipe.stages[stage].loss, None
        if loss and loss.needs_feature_scale:
            scale = feature_mean_std(cached.features, order_by_content(view), self._world.device)
        return codes(model, view, cached.features[:, 0], self._world.device, scale)


def _line(scores: dict[str, Any], stage: str, step: int, target: Index) -> str:
    said = "  ".join(f"{key} {scores[key]:.3f}" for key in SHOWN)
    return f"[{stage}] step {step}  {target.name}: {said}"


def read_kept(path: Path, asked: dict[str, Any], fits: Callable[[Any], bool]) -> dict[str, Any] | None:
    """What was measured before; None where that is damaged or answers another question, so that it is taken again."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in asked.items()):
        return None
    return found["found"] if fits(found.get("found")) else None


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, tree)
