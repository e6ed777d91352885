"""``embae evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, Expand, Rerank
from embae.trainer.recipe.scoring import TTA


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    dataset: Annotated[str | None, typer.Option(
        help="A dataset's name below data.root, or the folder of its shards; by default the target.")] = None,
    tta: Annotated[TTA | None, typer.Option(help="Test-time augmentation; by default the recipe's.")] = None,
    rerank: Rerank = None,
    expand: Expand = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the scores here as JSON.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    debug: Debug = False,
) -> None:
    """Score a run's models on a dataset's query and gallery.

    Example: embae evaluate runs/embae-cam --dataset shards/msmt17 --tta ten-crop --json scores.json
    """
    from embae.trainer.evaluation.score_dataset import prepare_scoring, score_dataset
    job = prepare_scoring(run, dataset, tta, rerank, expand)
    run_on_ranks(["evaluate", *sys.argv[2:]], nproc, work=lambda: score_dataset(job, to), needs_launch=False)
