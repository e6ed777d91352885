"""Scores the rows of a run on its target, once each, and measures what their codes contain.

    <stage>/evaluation/<dataset>.json, .npz       a model's scores and embeddings; runs that share a stage share them
    <stage>/evaluation/<dataset>-probes.json      what `codes.py` measures
    <run>/evaluation/<dataset>.json               the rows side by side
    <run>/evaluation/<dataset>-probes.json
    <run>/evaluation/<dataset>-<stage>.npz        raw embeddings of query and gallery, in the order of the index

`score_dataset.py` is the other way to score: any model on any dataset, with nothing stored in the run.
"""

from __future__ import annotations

import shutil

import torch.distributed as dist

from embae.datasets.files.json_files import write_json
from embae.datasets.index.arrow_index import Index
from embae.trainer.evaluation.stage_scores import StageScores
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.runs.run_datasets import can_score
from embae.trainer.runs.score_table import score_table, write_scores
from embae.trainer.runs.stage_folder import EXPORT


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
    stages = StageScores(context, target)
    rows = {row: stages.scores(stage) for row, stage in recipe.evaluate.items()}
    probes = {row: stages.probes(row) for row in rows} if target.count("train") else {}
    if context.world.first:
        folder = run / "evaluation"
        write_scores(folder / f"{target.name}.json", target.name, recipe.scoring.tta, rows, recipe.scoring.refined)
        write_json(folder / f"{target.name}-probes.json", probes)
        for stage in recipe.evaluate.values():
            shutil.copyfile(stages.embeddings_path(stage), folder / f"{target.name}-{stage}.npz")
    monitor.say("\n" + score_table(target.name, recipe.scoring.tta, rows, recipe.scoring.refined))
    dist.barrier()
