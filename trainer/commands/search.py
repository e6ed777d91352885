"""``embae search``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.trainer.commands.options import Debug, JsonFile, ModelPath, Name, Pattern, SkipBad, Stage, check_writable
from embae.trainer.errors import RecipeError
from embae.trainer.retrieval.ranking_options import MOST, RankingOptions
from embae.trainer.runs.trained_model import find_model, tta_of
from embae.trainer.runtime.fast_imports import gc_paused


def search(
    run: ModelPath,
    query: Annotated[list[str], typer.Option(metavar="FILE|KEY", help=(
        "An image file, or the key of an image in the gallery's dataset (in a merged set MEMBER:KEY, if several have "
        "it). Repeatable."))],
    gallery: Annotated[str, typer.Option(help=(
        "A sharded dataset or merged set, its name below data.root, a folder of images, or a file of embae extract."))],
    top: Annotated[int, typer.Option(min=1, help="Images to find for each query.")] = 10,
    camera: Annotated[list[str] | None, typer.Option(metavar="[DATASET:]NAME|CAMID", help=(
        "The camera of all query files, or one for each, by name or number in the gallery; for models that are "
        "calibrated by camera. Repeatable."))] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help=(
        "Re-rank the 1,000 nearest images by k-reciprocal neighbours."))] = False,
    expand: Annotated[int, typer.Option(min=0, max=MOST, metavar="N", help=(
        "Search again with the mean of the query and its N nearest images."))] = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the results to this file.")] = None,
    to: JsonFile = None,
    stage: Stage = None,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    """Find the images of a gallery that are most like an image.

    The gallery is the dataset's split gallery, or all images if that is empty, always without junk images. Its
    embeddings are stored for the next search.

    Example: embae search runs/embae-cam --query door.jpg --gallery shards/market1501 --top 10 --picture found.png
    """
    trained = find_model(run, stage)
    _check_queries(query, camera or [])
    for option, path in (("--picture", picture), ("--json", to)):
        if path:
            check_writable(option, path)
    with gc_paused():
        from embae.datasets.files.json_files import write_json
        from embae.datasets.image_source import open_source
        from embae.trainer.deployment.gallery import extract_gallery, open_gallery
        from embae.trainer.deployment.load import load
        from embae.trainer.deployment.query import read_query
        from embae.trainer.deployment.search_picture import draw_results
        from embae.trainer.deployment.search_results import find_matches, format_results, results_tree
        from embae.trainer.runs.scratch import scratch_folder
    with scratch_folder(trained.run) as cache:
        model, ranking = load(trained.export, tta=tta_of(trained)), RankingOptions(rerank, expand)
        if os.path.isfile(gallery):
            images = open_gallery(Path(gallery), trained, model)
        else:
            source = open_source(gallery, trained.root, name=name, pattern=pattern, keep=cache / "footage",
                                 skip_bad=skip_bad)
            images = extract_gallery(source, trained, model, cache)
        cameras: Sequence[str | None] = camera or [None]
        queries = [read_query(text, cameras[number % len(cameras)], images, model) for number, text in enumerate(query)]
        results = find_matches(queries, images.vectors, top, ranking)
        tree = results_tree(results, images.vectors, ranking, trained.export, model.tta)
        if to:
            to.parent.mkdir(parents=True, exist_ok=True)
            write_json(to, tree)
        print(format_results(tree, len(images.vectors.datasets) > 1))
        if picture:
            draw_results(picture, results, tree, images)


def _check_queries(queries: list[str], cameras: list[str]) -> None:
    for query in queries:
        if os.path.isdir(query):
            raise DataError(f"--query {query}: a folder; expected one image, with a --query for each of several")
    if cameras and len(cameras) not in (1, len(queries)):
        raise RecipeError(f"--camera: found {len(cameras)} for {len(queries)} queries; expected one, or one for each")
