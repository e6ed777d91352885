"""Scores and probes of a run's stages on the target: read from the stage's folder, or computed and stored there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.view import View
from embae.trainer.evaluation.codes import Codes, compute_codes, measure_codes
from embae.trainer.evaluation.score_model import score_model
from embae.trainer.inference.features import cached_features, feature_mean_std
from embae.trainer.inference.options import Inference
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import SavedModel
from embae.trainer.monitoring.projector import write_projector
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.score_table import are_numbers, are_scores
from embae.trainer.runs.stage_folder import EXPORT, read_cost
from embae.trainer.runtime.distributed import broadcast_object

# What TensorBoard's HParams shows in addition to the stage's keys. It takes the first keys by name, so that keys of the
# machine are left out.
_HPARAMS: Any = {"seed": True, "model": True, "scoring": True, "data": {"image", "sources", "target"}}


class StageScores:
    """Scores and probes of a run's stages on a dataset.

    Args:
        context: The run.
        target: The dataset.
    """

    def __init__(self, context: RunContext, target: Index):
        self._context, self._recipe, self._run = context, context.recipe, context.folder
        self._world, self._monitor, self._target = context.world, context.monitor, target
        self._codes = cache(self._compute_codes)

    def embeddings_path(self, stage: str) -> Path:
        """The file of a stage's embeddings, which `scores` writes."""
        return self._scores_path(stage).with_suffix(".npz")

    def scores(self, stage: str) -> dict[str, Any]:
        """A stage's scores, see `evaluate`."""
        steps = read_cost(self._run, stage).steps

        def compute() -> dict[str, Any]:
            self._monitor.drop_record("eval", stage, steps)
            keys = self._recipe.model_dump(mode="json", by_alias=True, include=_HPARAMS)
            stage_keys = self._recipe.stages[stage].model_dump(mode="json", by_alias=True, exclude_none=True)
            self._monitor.record_settings(stage, {**keys, "stage": stage_keys})
            path = self.embeddings_path(stage)
            scores = score_model(self._context, self._restore(stage), stage, steps, self._target, path)
            if self._world.first:
                with np.load(path) as embeddings:
                    write_projector(self._run / "tensorboard" / stage, self._target, embeddings["query"],
                                    embeddings["gallery"], self._recipe.seed)
            return scores

        scoring = self._recipe.scoring
        conditions = {"tta": scoring.tta, "loader": self._recipe.data.loader, **asdict(scoring.refined)}
        return self._read_or_compute(self._scores_path(stage), conditions, compute, are_scores)

    def probes(self, row: str) -> dict[str, float]:
        """What a row's codes contain, and how far they are from those of the row that it starts from."""
        stage, start_row = self._recipe.evaluate[row], self._recipe.start(row)
        start = self._recipe.evaluate[start_row] if start_row else None

        def compute() -> dict[str, float]:
            view = View([self._target], "train")
            probes = measure_codes(self._codes(stage), self._codes(start) if start else None, view, self._recipe.seed)
            steps = read_cost(self._run, stage).steps
            self._monitor.drop_record("probe", stage, steps)
            self._monitor.record("probe", stage, steps, probes)
            return probes

        path = self._scores_path(stage).with_name(f"{self._target.name}-probes.json")
        return self._read_or_compute(path, {"start": start, "seed": self._recipe.seed}, compute, are_numbers)

    def _scores_path(self, stage: str) -> Path:
        return self._run / stage / "evaluation" / f"{self._target.name}.json"

    def _read_or_compute(self, path: Path, conditions: dict[str, Any], compute: Callable[[], dict[str, Any]],
                         is_valid: Callable[[Any], bool]) -> dict[str, Any]:
        conditions = {"fingerprint": self._target.fingerprint, **conditions}
        values = broadcast_object(read_stored(path, conditions, is_valid) if self._world.first else None)
        if values is None:
            values = compute()
            if self._world.first:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {**conditions, "found": values})
        return values

    def _restore(self, stage: str) -> EmbAE:
        return SavedModel.open(self._run / stage / EXPORT).restore().to(self._world.device)

    def _compute_codes(self, stage: str) -> Codes:
        recipe, view, model = self._recipe, View([self._target], "train"), self._restore(stage)
        bf16 = recipe.stages[recipe.run[-1]].precision == "bf16"  # so that features that a stage has cached are used
        inference = Inference.of_recipe(recipe, self._world, self._context.cache)
        cached = cached_features(model, view, inference, bf16=bf16)
        loss, scale = recipe.stages[stage].loss, None
        if loss and loss.needs_feature_scale:
            scale = feature_mean_std(cached.features, order_by_content(view), self._world.device)
        return compute_codes(model, view, cached.features[:, 0], self._world.device, scale)


def read_stored(path: Path, conditions: dict[str, Any], is_valid: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Reads earlier measurements; None if the file is missing, damaged, or was measured under other conditions.

    Args:
        path: A JSON file.
        conditions: Its entries besides the values.
        is_valid: Whether values have the expected form.
    """
    try:
        tree = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(tree, dict) or any(tree.get(key) != value for key, value in conditions.items()):
        return None
    return tree["found"] if is_valid(tree.get("found")) else None
