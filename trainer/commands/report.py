"""``embae report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.options import Debug, Expand, Rerank


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help=(
        "The page to write. Default: RUN/evaluation/report.html."))] = None,
    dataset: Annotated[str | None, typer.Option(help=(
        "A dataset to score and show, by its name below data.root or its folder of shards. Default: the scored one."
    ))] = None,
    rerank: Rerank = None,
    expand: Expand = None,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a run, finished or not.

    It shows scores, curves, stages, ranked lists and maps, and works offline.

    Example: embae report runs/embae-cam --out embae-cam.html
    """
    from dataclasses import replace

    from embae.datasets.files.atomic import write_bytes
    from embae.trainer.report.evidence import find_evidence, open_index
    from embae.trainer.runs.summary import read_summary
    summary = read_summary(run)
    index = open_index(summary, dataset)
    from embae.trainer.evaluation.score_dataset import ranking_options
    from embae.trainer.report.maps import maps
    from embae.trainer.report.page import page
    refined = ranking_options(summary.recipe.scoring, rerank, expand)
    evidence, scored = find_evidence(summary, index, refined, saved=dataset is None)
    if scored:
        others = [scores for scores in summary.scores
                  if (scores.dataset, scores.refined) != (scored.dataset, scored.refined)]
        summary = replace(summary, scores=[scored, *others])
    html = page(summary, evidence, maps(summary, index)).encode()
    name = "report.html" if dataset is None or isinstance(index, str) else f"report-{index.name}.html"
    path = out or run / "evaluation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, html)
    print(f"{path}: {len(html) / 1e6:.1f} MB")
