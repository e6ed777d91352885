"""``embae evaluate``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, Expand, JsonFile, ModelPath, Nproc, Rerank, Tta


def evaluate(
    run: ModelPath,
    dataset: Annotated[str | None, typer.Option(
        help="A dataset by its name below data.root or its folder of shards. Default: the target of the run.")] = None,
    tta: Tta = None,
    rerank: Rerank = None,
    expand: Expand = None,
    to: JsonFile = None,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Score the models of a run on a dataset's query and gallery.

    Example: embae evaluate runs/embae-cam --dataset shards/msmt17 --tta ten-crop --json scores.json
    """
    from embae.trainer.evaluation.score_dataset import prepare_scoring, score_dataset
    job = prepare_scoring(run, dataset, tta, rerank, expand)
    run_on_ranks(["evaluate", *sys.argv[2:]], nproc, work=lambda: score_dataset(job, to), needs_launch=False)
