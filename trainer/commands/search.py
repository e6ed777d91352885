"""``embae search``.

What ``--json`` writes, stable; distances are those of `search.py`, or with ``--rerank`` from 0 to 1::

    format            1
    model, gallery    folder of the export; name of the gallery's dataset or merged set
    images            how many were searched
    tta, rerank, expand
    queries           a list, in the order of --query:
      query           as it was given
      dataset, camid, camera    its camera, by number and name as below; null where it is not known
      pid             its identity, null where it is not known
      matches         a list, nearest first: rank (from 1), distance, dataset (of a merged set, the member), key,
                      camid, camera (its name: the sub-folder of a folder of images, else camid as text), pid (null
                      where it is not known, and of distractors), same (whether it is the query's identity, which
                      distractors never are; null where that is not known)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embae.datasets.console.tables import format_table
from embae.datasets.errors import DataError
from embae.trainer.commands.options import Debug, Name, Pattern, SkipBad, Stage, check_writable
from embae.trainer.deployment.query import Query, _embedded, _extracted, _found, _origin_of, _pixels, _query
from embae.trainer.errors import RecipeError
from embae.trainer.retrieval.ranking_options import MOST, RankingOptions
from embae.trainer.runs.trained_model import find_model, tta_of
from embae.trainer.runtime.fast_imports import gc_paused

if TYPE_CHECKING:

    from embae.datasets.image_source import ImageSource
    from embae.trainer.deployment.search_picture import Shown
    from embae.trainer.deployment.vectors import Vectors


def search(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    query: Annotated[list[str], typer.Option(metavar="FILE|KEY", help=(
        "An image file, or the key of an image in the gallery's dataset (of a merged set, MEMBER:KEY where several "
        "have it); may be given several times."))],
    gallery: Annotated[str, typer.Option(help=(
        "A sharded dataset or merged set, its name below data.root, a folder of images, or what embae extract wrote."
    ))],
    top: Annotated[int, typer.Option(min=1, help="Images to find for each query.")] = 10,
    camera: Annotated[list[str] | None, typer.Option(metavar="[DATASET:]NAME|CAMID", help=(
        "The camera of the query files, or one for each, for models that are calibrated by camera: by its name or "
        "number in the gallery."))] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help=(
        "Re-rank the 1,000 nearest by k-reciprocal neighbours."))] = False,
    expand: Annotated[int, typer.Option(min=0, max=MOST, metavar="N", help=(
        "Search again with the mean of the query and its N nearest."))] = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw what was found.")] = None,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was found as JSON.")] = None,
    stage: Stage = None,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    """Find the images of a gallery that are most like an image; the gallery's embeddings are kept for the next time.

    A gallery's images are those of its split gallery, or all where it has none; junk takes no part.

    Example: embae search runs/embae-cam --query door.jpg --gallery shards/market1501 --top 10 --picture found.png
    """
    trained = find_model(run, stage)
    tta = tta_of(trained)
    for one in query:
        if os.path.isdir(one):
            raise DataError(f"--query {one}: a folder; wanted one image, and --query for each of several")
    if camera and len(camera) not in (1, len(query)):
        raise RecipeError(f"--camera: found {len(camera)} for {len(query)} queries; wanted one, or one for each")
    for option, path in (("--picture", picture), ("--json", to)):
        if path:
            check_writable(option, path)
    with gc_paused():
        from embae.datasets.image_source import open_source
        from embae.trainer.deployment.load import load
        from embae.trainer.runs.scratch import scratch_folder
    with scratch_folder(trained.run) as cache:
        model = load(trained.export, tta=tta)
        if os.path.isfile(gallery):
            pointed, vectors = None, _extracted(Path(gallery), trained, model, tta)
        else:
            pointed = open_source(gallery, trained.root, name=name, pattern=pattern, keep=cache / "footage",
                                 skip_bad=skip_bad)
            vectors = _embedded(pointed, trained, model, tta, cache)
        names = camera or []
        asked = [_query(one, (names[number % len(names)] if names else None), pointed, vectors, model)
                 for number, one in enumerate(query)]
        found = _found(asked, vectors, top, rerank, expand)
        tree = {"format": 1, "model": str(trained.export), "gallery": vectors.origin.name,
                "images": int((~vectors.junk).sum()), "tta": tta, "rerank": rerank, "expand": expand,
                "queries": [_tree(one, matches, vectors) for one, matches in zip(asked, found, strict=True)]}
        if to:
            from embae.datasets.files.json_files import write_json
            to.parent.mkdir(parents=True, exist_ok=True)
            write_json(to, tree)
        print(_text(tree, len(vectors.datasets) > 1))
        if picture:
            _draw(picture, tree, asked, found, pointed or _origin_of(vectors), vectors)


def _tree(query: Query, matches: list[tuple[int, float]], vectors: Vectors) -> dict[str, Any]:
    dataset, camid = query.camera or (None, None)
    listed = []
    for rank, (image, distance) in enumerate(matches, 1):
        own = vectors.datasets[vectors.dataset[image]], int(vectors.camid[image])
        pid = int(vectors.pid[image]) if vectors.labelled[image] else None
        known = query.pid is not None and (pid is not None or bool(vectors.distractor[image]))
        same = (own[0], pid) == (dataset, query.pid) if known else None
        listed.append({"rank": rank, "distance": round(distance, 6), "dataset": own[0], "key": vectors.key(image),
                       "camid": own[1], "camera": vectors.camera_name(own), "pid": pid, "same": same})
    camera = vectors.camera_name(query.camera) if query.camera else None
    return {"query": query.said, "dataset": dataset, "camid": camid, "camera": camera, "pid": query.pid,
            "matches": listed}


def _text(tree: dict[str, Any], several: bool) -> str:
    tables = []
    for query in tree["queries"]:
        rows = [[str(match["rank"]), f"{match['distance']:.3f}", _seen(match, several), _pid(match["pid"]),
                 match["key"]] for match in query["matches"]]
        tables.append(f"{query['query']}: nearest of {tree['images']:,} images of {tree['gallery']}\n"
                      + format_table(["rank", "distance", "camera", "pid", "key"], rows, left=["key"]))
    return "\n\n".join(tables)


def _seen(match: dict[str, Any], several: bool) -> str:
    return f"{match['dataset']}:{match['camera']}" if several else match["camera"]


def _pid(pid: int | None) -> str:
    return "–" if pid is None else str(pid)


def _draw(
    path: Path,
    tree: dict[str, Any],
    asked: list[Query],
    found: list[list[tuple[int, float]]],
    pointed: ImageSource,
    vectors: Vectors,
) -> None:
    from embae.trainer.deployment.search_picture import Shown, draw

    def shown(match: dict[str, Any], image: int) -> Shown:
        who = "" if match["pid"] is None else f", pid {match['pid']}"
        return Shown(_pixels(pointed, match["dataset"], int(vectors.row[image])), f"{match['distance']:.3f}",
                     [f"camera {_seen(match, len(vectors.datasets) > 1)}{who}", match["key"]], match["same"])

    rows = []
    for query, told, matches in zip(asked, tree["queries"], found, strict=True):
        seen = [] if told["camid"] is None else [f"camera {told['camera']}"]
        seen += [] if query.pid is None else [f"pid {query.pid}"]
        first = Shown(query.image, "query", [", ".join(seen), os.path.basename(query.said)] if seen else
                      [os.path.basename(query.said)])
        rows.append((first, [shown(match, image)
                             for match, (image, _) in zip(told["matches"], matches, strict=True)]))
    how = ", ".join(filter(None, ["each with its rank and its distance from the query", RankingOptions.of(tree).brief]))
    draw(f"Nearest of {tree['images']:,} images of {tree['gallery']}", how, rows, path)
