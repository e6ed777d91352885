"""``embae report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.commands.options import Debug, Expand, Rerank


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or not.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help=(
        "The page to write; by default RUN/evaluation/report.html."))] = None,
    dataset: Annotated[str | None, typer.Option(help=(
        "Score this dataset and show it, by name or by the folder of its shards; by default what was scored."))] = None,
    rerank: Rerank = None,
    expand: Expand = None,
    debug: Debug = False,
) -> None:
    """Write one HTML page of a run: scores, curves, stages, ranked lists, maps. It works offline.

    Example: embae report runs/embae-cam --out embae-cam.html
    """
    from dataclasses import replace

    from embae.datasets.files.atomic import write_bytes
    from embae.trainer.report.evidence import find_evidence, open_index
    from embae.trainer.runs.summary import read_summary
    facts = read_summary(run)
    index = open_index(facts, dataset)
    from embae.trainer.evaluation.score_dataset import ranking_options
    from embae.trainer.report.maps import maps
    from embae.trainer.report.page import page
    refined = ranking_options(facts.recipe.scoring, rerank, expand)
    evidence, scored = find_evidence(facts, index, refined, saved=dataset is None)
    if scored:
        others = [one for one in facts.scores if (one.dataset, one.refined) != (scored.dataset, scored.refined)]
        facts = replace(facts, scores=[scored, *others])
    made = page(facts, evidence, maps(facts, index)).encode()
    name = "report.html" if dataset is None or isinstance(index, str) else f"report-{index.name}.html"
    path = out or run / "evaluation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, made)
    print(f"{path}: {len(made) / 1e6:.1f} MB")
