"""Scores one model of a run on the run's target and records the scores, after a stage or between its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embae.datasets.index.arrow_index import Index
from embae.trainer.evaluation.evaluate import evaluate
from embae.trainer.inference.options import Inference
from embae.trainer.model.embae import EmbAE
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.score_table import SHOWN


def score_model(context: RunContext, model: EmbAE, stage: str, step: int, target: Index,
                keep: Path | None = None) -> dict[str, Any]:
    """Scores a model on the target, and records the scores.

    Args:
        context: The run.
        model: In eval mode, on the rank's device.
        stage: The stage that it belongs to.
        step: Steps that it was trained.
        target: The dataset.
        keep: File for the raw embeddings, see `evaluate`.

    Returns:
        The scores, see `evaluate`.
    """
    recipe, monitor = context.recipe, context.monitor
    inference = Inference.of_recipe(recipe, context.world, context.cache)
    scores = evaluate(model, target, inference, refined=recipe.scoring.refined, keep=keep)
    monitor.record("eval", stage, step, {"dataset": target.name, **scores})
    values = "  ".join(f"{name} {scores[name]:.3f}" for name in SHOWN)
    monitor.say(f"[{stage}] step {step}  {target.name}: {values}")
    return scores
