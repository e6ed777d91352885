"""Scores the models of a run, or an export, on any dataset, for ``embae evaluate``; nothing is stored in the run.

`score_run.py` is the other way to score: the rows of a run on its target, stored in the run.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.inspection.verification import check_rows
from embae.datasets.remote.url import Url, parse_location
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.scoring import TTA, Scoring
from embae.trainer.retrieval.ranking_options import RankingOptions
from embae.trainer.runs.run_datasets import can_score
from embae.trainer.runs.score_table import score_table, write_scores
from embae.trainer.runs.scratch import scratch_folder
from embae.trainer.runs.stage_folder import EXPORT, is_done
from embae.trainer.runs.trained_model import resolve_path
from embae.trainer.runtime.fast_imports import gc_paused


@dataclass(frozen=True)
class ScoringJob:
    """What to score, and how; checked.

    Attributes:
        run: A run folder, or the export folder of a stage.
        recipe: The recipe of the run; None for an export alone.
        exports: Row of the table → export.
        left_out: Rows whose stage is not done, and the stage.
        index: The dataset.
        tta: Test-time augmentation.
        refined: How the ranking is refined.
    """

    run: Path
    recipe: Recipe | None
    exports: dict[str, Path]
    left_out: dict[str, str]
    index: Index
    tta: TTA
    refined: RankingOptions


def prepare_scoring(run: Path, dataset: str | None, tta: TTA | None = None, rerank: bool | None = None,
                    expand: int | None = None) -> ScoringJob:
    """Checks, without torch, the input of ``embae evaluate``.

    Args:
        run: A run folder, or the folder of a stage or its export.
        dataset: A name below the recipe's ``data.root`` or the folder of a sharded dataset; None takes the target.
        tta: Test-time augmentation; None takes the recipe's.
        rerank: Whether to re-rank; None takes the recipe's.
        expand: Number of images by which queries are expanded; None takes the recipe's.

    Raises:
        RecipeError: There is no run, or none of the stages to score is done.
        DataError: The dataset is missing, or has nothing to score.
    """
    recipe, exports, left_out = _find_exports(run)
    index = _open_dataset(dataset, recipe.data.root if recipe else None, recipe.data.target if recipe else None)
    check_rows(index)
    if not can_score(index):
        raise DataError(f"{index.root}: nothing to score; expected labelled images in query, and a gallery "
                        "(docs/data.md)")
    scoring = recipe.scoring if recipe else Scoring()
    return ScoringJob(run, recipe, exports, left_out, index, tta or scoring.tta,
                      ranking_options(scoring, rerank, expand))


def ranking_options(scoring: Scoring, rerank: bool | None, expand: int | None) -> RankingOptions:
    """How a ranking is refined: by the options of a command, and by a recipe where an option is None."""
    return RankingOptions(scoring.rerank if rerank is None else rerank, scoring.expand if expand is None else expand)


def _find_exports(run: Path) -> tuple[Recipe | None, dict[str, Path], dict[str, str]]:
    """A run's recipe, the exports of the rows of its table, and the stages of rows that are not done.

    The folder of a stage or its export has no recipe; its only row is named after the stage.
    """
    recipe = resolve_path(run)
    if isinstance(recipe, Path):
        return None, {recipe.resolve().parent.name: recipe}, {}
    rows = recipe.evaluate or {recipe.run[-1]: recipe.run[-1]}
    exports = {row: run / stage / EXPORT for row, stage in rows.items() if is_done(run, stage)}
    if not exports:
        raise RecipeError(f"{run}: none of the stages {', '.join(rows.values())} is done; run embae train first")
    return recipe, exports, {row: stage for row, stage in rows.items() if row not in exports}


def _open_dataset(dataset: str | None, root: Path | Url | None, target: str | None) -> Index:
    name = dataset or target
    if root is not None and name is not None and "://" not in name and (
            not os.path.isdir(name) or (isinstance(root, Path) and os.path.isdir(root / name))):
        return Index.open(root / name)
    if dataset is None:
        raise DataError("which dataset? An export does not say where its data is; give --dataset FOLDER_OF_SHARDS")
    return Index.open(parse_location(dataset))


def score_dataset(job: ScoringJob, json_path: Path | None) -> None:
    """Computes the scores and prints their table; every rank calls it.

    Args:
        job: What is scored.
        json_path: Where to write the scores as JSON, if at all.

    Raises:
        DataError: No query has a match.
        FloatingPointError: An embedding is not finite.
    """
    with gc_paused():
        from embae.trainer.evaluation.evaluate import evaluate
        from embae.trainer.inference.options import Inference
        from embae.trainer.model.saved import SavedModel
        from embae.trainer.runtime.distributed import broadcast_object, join, leave
    world, scores = join(), {}
    try:
        with scratch_folder(job.run) if world.first else nullcontext() as scratch:
            cache = Path(broadcast_object(str(scratch)))
            for row, path in job.exports.items():
                export = SavedModel.open(path)
                inference = Inference.of_export(export, job.recipe, world, cache, tta=job.tta)
                scores[row] = evaluate(export.restore().to(world.device), job.index, inference, refined=job.refined)
    finally:
        leave()
    if world.first:
        for row, stage in job.left_out.items():
            note(f"{row} is left out: its stage, {stage}, is not done")
        if json_path:
            write_scores(json_path, job.index.name, job.tta, scores, job.refined)
        print(score_table(job.index.name, job.tta, scores, job.refined))
