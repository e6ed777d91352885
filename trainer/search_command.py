"""``embae search``.

What ``--json`` writes, stable; distances are those of `search.py`, or with ``--rerank`` from 0 to 1::

    format            1
    model, gallery    folder of the export; name of the gallery's dataset
    images            how many were searched
    tta, rerank, expand
    queries           a list, in the order of --query:
      query           as it was given
      dataset, camid  its camera, null where it is not known
      pid             its identity, null where it is not known
      matches         a list, nearest first: rank (from 1), distance, dataset, key, camid, camera (its name: the
                      sub-folder of a folder of images, else camid as text), pid (null where it is not known, and of
                      distractors), same (whether it is the query's identity, which distractors never are; null where
                      that is not known)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embae.datasets.errors import DataError
from embae.trainer.errors import RecipeError
from embae.trainer.extract_command import Pattern, Stage, tta_of
from embae.trainer.options import Debug
from embae.trainer.trained import Trained, find

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from embae.datasets.index import Index
    from embae.trainer.loaded import Loaded
    from embae.trainer.schema import TTA
    from embae.trainer.search_picture import Shown
    from embae.trainer.vectors import Vectors


def search(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    query: Annotated[list[str], typer.Option(metavar="FILE|KEY", help=(
        "An image file, or the key of an image in the gallery's dataset; may be given several times."))],
    gallery: Annotated[str, typer.Option(help=(
        "A sharded dataset, its name below data.root, a folder of images, or what embae extract wrote."))],
    top: Annotated[int, typer.Option(min=1, help="Images to find for each query.")] = 10,
    camera: Annotated[list[str] | None, typer.Option(metavar="DATASET:CAMID|NAME", help=(
        "The camera of the query files, or one for each, for models that are calibrated by camera."))] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help=(
        "Re-rank the 1,000 nearest by k-reciprocal neighbours."))] = False,
    expand: Annotated[int, typer.Option(min=0, metavar="N", help=(
        "Search again with the mean of the query and its N nearest."))] = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw what was found.")] = None,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was found as JSON.")] = None,
    stage: Stage = None,
    pattern: Pattern = None,
    debug: Debug = False,
) -> None:
    """Find the images of a gallery that are most like an image; the gallery's embeddings are kept for the next time.

    A gallery's images are those of its split gallery, or all where it has none; junk takes no part.

    Example: embae search runs/embae-cam --query door.jpg --gallery shards/market1501 --top 10 --picture found.png
    """
    trained = find(run, stage)
    tta = tta_of(trained)
    for one in query:
        if os.path.isdir(one):
            raise DataError(f"--query {one}: a folder; wanted one image, and --query for each of several")
    if camera and len(camera) not in (1, len(query)):
        raise RecipeError(f"--camera: found {len(camera)} for {len(query)} queries; wanted one, or one for each")
    from embae.trainer.loaded import load
    from embae.trainer.rescore import meanwhile
    with meanwhile(trained.run) as cache:
        model = load(trained.export, tta=tta)
        index, vectors = _gallery(gallery, trained, model, tta, cache, pattern)
        names = camera or []
        asked = [_query(one, (names[number % len(names)] if names else None), index, vectors, model)
                 for number, one in enumerate(query)]
        found, cameras = _found(asked, vectors, top, rerank, expand), _named(index)
        tree = {"format": 1, "model": str(trained.export), "gallery": vectors.origin.name,
                "images": int((~vectors.junk).sum()), "tta": tta, "rerank": rerank, "expand": expand,
                "queries": [_tree(one, matches, vectors, cameras) for one, matches in zip(asked, found, strict=True)]}
        if to:
            from embae.datasets.index_writer import write_whole
            to.parent.mkdir(parents=True, exist_ok=True)
            write_whole(to, lambda file: file.write((json.dumps(tree, indent=1) + "\n").encode()))
        print(_text(tree))
        if picture:
            _draw(picture, tree, asked, found, index or _origin_of(vectors), vectors)


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        said: As it was given.
        image: Its pixels.
        camera: (dataset, camid), where it is known.
        pid: Its identity in the gallery's dataset, where it is known.
        embedding: `(D,)`.
        row: In the index of the gallery's dataset; −1 of a file.
    """

    said: str
    image: Image.Image
    camera: tuple[str, int] | None
    pid: int | None
    embedding: np.ndarray
    row: int


def _gallery(where: str, trained: Trained, model: Loaded, tta: TTA, cache: Path,
             pattern: str | None) -> tuple[Index | None, Vectors]:
    """The gallery's embeddings, extracted if need be, and its dataset; None where only embeddings were given."""
    import torch

    from embae.datasets.records import SPLITS
    from embae.trainer.distributed import World
    from embae.trainer.extract import extract_to, origin, pointed_at, reading_of
    from embae.trainer.vectors import Vectors
    if os.path.isfile(where):
        vectors = Vectors.open(Path(where))
        if vectors.origin.model != model.key or vectors.width != model.width:
            raise DataError(f"{where}: embeddings of another model or another test-time augmentation than {tta}; make "
                            f"them by embae extract {trained.run} {vectors.origin.root} -o {where}")
        return None, vectors
    index = pointed_at(where, trained, cache / "footage", pattern)
    made = origin(model.key, index, ("gallery",) if index.count("gallery") else SPLITS)
    path = cache / f"search-{model.key[:8]}-{index.name}-{index.fingerprint[:8]}-{'-'.join(made.splits)}.arrow"
    world = World(0, 0, 1, torch.device(model.device))
    extract_to(path, made, model.net, index, model.spec, tta, world, reading_of(trained))
    return index, Vectors.open(path)


def _origin_of(vectors: Vectors) -> Index:
    """The dataset that embeddings are of, where it was."""
    from embae.datasets.index import Index
    from embae.datasets.remote import location
    index = Index.open(location(vectors.origin.root))
    if index.fingerprint != vectors.origin.fingerprint:
        raise DataError(f"{index.root}: the images are others than those that were extracted; extract them again")
    return index


def _query(said: str, camera: str | None, index: Index | None, vectors: Vectors, model: Loaded) -> Query:
    from PIL import Image

    from embae.datasets.images import opened, upright
    if os.path.isfile(said):
        with opened(Path(said).read_bytes(), said) as file:
            image = upright(file, said)
        seen = _camera(camera, index, vectors) if camera else None
        return Query(said, image, seen, None, model(image, seen)[0].numpy(), -1)
    import pyarrow.compute as pc

    from embae.datasets.records import ROLES
    index = index or _origin_of(vectors)
    row = pc.index(index.keys, said).as_py()
    if row < 0:
        raise DataError(f"--query {said}: no such file, and {index.name} has no image of this key")
    known = bool(index.labelled[row]) and index.role[row] == ROLES.index("person")
    image, seen = _pixels(index, row), (index.name, int(index.camid[row]))
    assert isinstance(image, Image.Image)
    return Query(said, image, seen, int(index.pid[row]) if known else None, model(image, seen)[0].numpy(), row)


def _pixels(index: Index, row: int) -> Image.Image:
    from embae.datasets.images import decoded
    from embae.datasets.shard_reader import ShardReader, where
    with ShardReader(index) as reader:
        return decoded(reader.read(row), where(index, row))


def _camera(text: str, index: Index | None, vectors: Vectors) -> tuple[str, int]:
    """What ``--camera`` means: DATASET:CAMID, or a camera of the gallery by its name or number."""
    from embae.trainer.footage import cameras
    dataset, colon, camid = text.rpartition(":")
    if colon and camid.isdigit():
        return dataset, int(camid)
    index = index or _origin_of(vectors)
    known = cameras(index)
    if text not in known:
        raise DataError(f"--camera {text}: {index.name} has {', '.join(known)}; or say DATASET:CAMID")
    return index.name, known[text]


def _found(asked: list[Query], vectors: Vectors, top: int, rerank: bool,
           expand: int) -> list[list[tuple[int, float]]]:
    """Images and distances for each query, nearest first."""
    from embae.trainer.search import Search
    through, found = Search(vectors), []
    for query in asked:
        left_out = vectors.junk | (vectors.row == query.row)
        embedding = through.expanded(query.embedding, expand, left_out) if expand else query.embedding
        how = through.reranked if rerank else through.nearest
        images, distances = how(embedding, top, left_out)
        found.append(list(zip(images.tolist(), distances.tolist(), strict=True)))
    return found


def _named(index: Index | None) -> dict[int, str]:
    """What a dataset's cameras are called, where that is known."""
    from embae.trainer.footage import cameras
    return {camid: name for name, camid in cameras(index).items()} if index else {}


def _tree(query: Query, matches: list[tuple[int, float]], vectors: Vectors, cameras: dict[int, str]) -> dict[str, Any]:
    dataset, camid = query.camera or (None, None)
    listed = []
    for rank, (image, distance) in enumerate(matches, 1):
        pid = int(vectors.pid[image]) if vectors.labelled[image] else None
        known = query.pid is not None and (pid is not None or bool(vectors.distractor[image]))
        same = pid == query.pid if known else None
        camera = int(vectors.camid[image])
        listed.append({"rank": rank, "distance": round(distance, 6), "dataset": vectors.origin.name,
                       "key": vectors.key(image), "camid": camera, "camera": cameras.get(camera, str(camera)),
                       "pid": pid, "same": same})
    return {"query": query.said, "dataset": dataset, "camid": camid, "pid": query.pid, "matches": listed}


def _text(tree: dict[str, Any]) -> str:
    lines = []
    for query in tree["queries"]:
        lines += ["", f"{query['query']}: nearest of {tree['images']:,} images of {tree['gallery']}",
                  "rank  distance      camera     pid  key", "─" * 64]
        lines += [f"{one['rank']:4}  {one['distance']:8.3f}  {one['camera']:>10}  {_pid(one['pid']):>6}  {one['key']}"
                  for one in query["matches"]]
    return "\n".join(lines[1:])


def _pid(pid: int | None) -> str:
    return "–" if pid is None else str(pid)


def _draw(path: Path, tree: dict[str, Any], asked: list[Query], found: list[list[tuple[int, float]]], index: Index,
          vectors: Vectors) -> None:
    from embae.trainer.search_picture import Shown, draw

    def shown(match: dict[str, Any], image: int) -> Shown:
        who = "" if match["pid"] is None else f", pid {match['pid']}"
        return Shown(_pixels(index, int(vectors.row[image])), f"{match['distance']:.3f}",
                     [f"camera {match['camera']}{who}", match["key"]], match["same"])

    rows = []
    for query, told, matches in zip(asked, tree["queries"], found, strict=True):
        seen = [] if told["camid"] is None else [f"camera {told['camid']}"]
        seen += [] if query.pid is None else [f"pid {query.pid}"]
        first = Shown(query.image, "query", [", ".join(seen), os.path.basename(query.said)] if seen else
                      [os.path.basename(query.said)])
        rows.append((first, [shown(match, image)
                             for match, (image, _) in zip(told["matches"], matches, strict=True)]))
    ways = ["re-ranked" * tree["rerank"], f"expanded by {tree['expand']}" * bool(tree["expand"])]
    how = ", ".join(["each with its rank and its distance from the query", *filter(None, ways)])
    draw(f"Nearest of {tree['images']:,} images of {tree['gallery']}", how, rows, path)
