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

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embae.datasets.errors import DataError
from embae.datasets.progress import note
from embae.trainer.errors import RecipeError
from embae.trainer.extract_command import Name, Pattern, SkipBad, Stage, tta_of
from embae.trainer.importing import uncollected
from embae.trainer.known_cameras import listed, tell
from embae.trainer.options import Debug, check_writable
from embae.trainer.refined import MOST, Refined
from embae.trainer.trained import Trained, find

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from embae.trainer.footage import Pointed
    from embae.trainer.known_cameras import Camera
    from embae.trainer.loaded import Loaded
    from embae.trainer.schema import TTA
    from embae.trainer.search_picture import Shown
    from embae.trainer.vectors import Vectors


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
    trained = find(run, stage)
    tta = tta_of(trained)
    for one in query:
        if os.path.isdir(one):
            raise DataError(f"--query {one}: a folder; wanted one image, and --query for each of several")
    if camera and len(camera) not in (1, len(query)):
        raise RecipeError(f"--camera: found {len(camera)} for {len(query)} queries; wanted one, or one for each")
    for option, path in (("--picture", picture), ("--json", to)):
        if path:
            check_writable(option, path)
    with uncollected():
        from embae.trainer.footage import pointed_at
        from embae.trainer.loaded import load
        from embae.trainer.rescore import meanwhile
    with meanwhile(trained.run) as cache:
        model = load(trained.export, tta=tta)
        if os.path.isfile(gallery):
            pointed, vectors = None, _extracted(Path(gallery), trained, model, tta)
        else:
            pointed = pointed_at(gallery, trained.root, name=name, pattern=pattern, keep=cache / "footage",
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
            from embae.datasets.index_writer import write_whole
            to.parent.mkdir(parents=True, exist_ok=True)
            write_whole(to, lambda file: file.write((json.dumps(tree, indent=1) + "\n").encode()))
        print(_text(tree, len(vectors.datasets) > 1))
        if picture:
            _draw(picture, tree, asked, found, pointed or _origin_of(vectors), vectors)


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        said: As it was given.
        image: Its pixels.
        camera: (dataset, camid), where it is known.
        pid: Its identity in the gallery's dataset, where it is known.
        embedding: `(D,)`.
        key: (dataset, row of its index) of an image of the gallery's dataset; None of a file.
    """

    said: str
    image: Image.Image
    camera: Camera | None
    pid: int | None
    embedding: np.ndarray
    key: tuple[str, int] | None


def _extracted(where: Path, trained: Trained, model: Loaded, tta: TTA) -> Vectors:
    """The embeddings in a file."""
    from embae.trainer.vectors import Vectors
    vectors = Vectors.open(where)
    if vectors.origin.model != model.key or vectors.width != model.width:
        raise DataError(f"{where}: embeddings of another model or another test-time augmentation than {tta}; make "
                        f"them by embae extract {trained.run} {vectors.origin.root} -o {where}")
    return vectors


def _embedded(pointed: Pointed, trained: Trained, model: Loaded, tta: TTA, cache: Path) -> Vectors:
    """The gallery's embeddings, extracted if need be."""
    import torch

    from embae.datasets.records import SPLITS
    from embae.trainer.distributed import World
    from embae.trainer.extract import extract_to, origin, reading_of
    from embae.trainer.vectors import Vectors
    made = origin(model.key, pointed, ("gallery",) if pointed.count("gallery") else SPLITS)
    path = cache / f"search-{model.key[:8]}-{pointed.name}-{pointed.fingerprint[:8]}-{'-'.join(made.splits)}.arrow"
    world = World(0, 0, 1, torch.device(model.device))
    extract_to(path, made, model.net, pointed, model.spec, tta, world, reading_of(trained))
    return Vectors.open(path)


def _origin_of(vectors: Vectors) -> Pointed:
    """The dataset or merged set that embeddings are of, where it was."""
    from embae.datasets.remote import location
    from embae.trainer.footage import Pointed
    pointed = Pointed.open(location(vectors.origin.root))
    if pointed.fingerprint != vectors.origin.fingerprint:
        raise DataError(f"{pointed.root}: the images are others than those that were extracted; extract them again")
    return pointed


def _query(said: str, camera: str | None, pointed: Pointed | None, vectors: Vectors, model: Loaded) -> Query:

    from embae.datasets.images import opened, upright
    if os.path.isfile(said):
        with opened(Path(said).read_bytes(), said) as file:
            image = upright(file, said)
        seen = _camera(camera, vectors, model) if camera else None
        return Query(said, image, seen, None, _embedding(said, image, seen, vectors, model), None)
    from embae.datasets.records import ROLES
    pointed = pointed or _origin_of(vectors)
    number, row = _row(said, pointed)
    index = pointed.indexes[number]
    known = bool(index.labelled[row]) and index.role[row] == ROLES.index("person")
    image, seen = _pixels(pointed, index.name, row), (index.name, int(index.camid[row]))
    return Query(said, image, seen, int(index.pid[row]) if known else None,
                 _embedding(said, image, seen, vectors, model), (index.name, row))


def _row(said: str, pointed: Pointed) -> tuple[int, int]:
    """Which of the datasets has an image of this key, and where."""
    import pyarrow.compute as pc
    dataset, _, key = said.rpartition(":")
    found = [(number, row) for number, index in enumerate(pointed.indexes)
             if dataset in ("", index.name) and (row := pc.index(index.keys, key).as_py()) >= 0]
    if not found:
        raise DataError(f"--query {said}: no such file, and {pointed.name} has no image of this key")
    if len(found) > 1:
        names = [f"{pointed.indexes[number].name}:{key}" for number, _ in found]
        raise DataError(f"--query {said}: several datasets of {pointed.name} have it; say {' or '.join(names)}")
    return found[0]


def _embedding(said: str, image: Image.Image, camera: Camera | None, vectors: Vectors, model: Loaded) -> np.ndarray:
    """A query's embedding through its camera's statistics; says where the model has none."""
    known = model.net.known
    place = known.place(camera, vectors.camera_names.get(camera)) if camera else -1
    if known.cameras and place < 0:
        what = (f"the model is not calibrated on camera {vectors.camera_name(camera)} of {camera[0]}" if camera else
                "which camera it is from is not said (--camera)")
        note(f"--query {said}: {what}; it goes through the statistics that all cameras share. The model knows "
             f"{tell(known.cameras, known.names)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would tell a programmer the same
        found: np.ndarray = model(image, known.cameras[place] if place >= 0 else None)[0].numpy()
    return found


def _pixels(pointed: Pointed, dataset: str, row: int) -> Image.Image:
    from embae.datasets.images import decoded
    from embae.datasets.shard_reader import ShardReader, where
    index = next(index for index in pointed.indexes if index.name == dataset)
    with ShardReader(index) as reader:
        return decoded(reader.read(row), where(index, row))


def _camera(text: str, vectors: Vectors, model: Loaded) -> Camera:
    """What ``--camera`` means, in the gallery's numbers: a camera of it, or one of elsewhere that the model knows."""
    cameras = sorted({*vectors.cameras(), *vectors.camera_names})
    by_name = {camera: vectors.camera_name(camera) for camera in cameras}
    dataset, _, said = text.rpartition(":")
    for found in ([camera for camera in cameras if by_name[camera] == text],
                  [camera for camera in cameras if (camera[0], by_name[camera]) == (dataset, said)],
                  [camera for camera in cameras if camera[0] == dataset and str(camera[1]) == said]):
        if len(found) > 1:
            names = " or ".join(f"{camera[0]}:{text}" for camera in found)
            raise DataError(f"--camera {text}: several datasets of {vectors.origin.name} have it; say {names}")
        if found:
            return found[0]
    known = model.net.known
    if dataset not in vectors.datasets and (place := known.called(dataset, said)) >= 0:
        return known.cameras[place]
    wanted = listed(cameras, by_name, None) if len(vectors.datasets) == 1 else tell(cameras, by_name, None)
    raise DataError(f"--camera {text}: {vectors.origin.name} has {wanted}" + (
        f"; the model knows {tell(known.cameras, known.names)}" if known.cameras else ""))


def _found(asked: list[Query], vectors: Vectors, top: int, rerank: bool,
           expand: int) -> list[list[tuple[int, float]]]:
    """Images and distances for each query, nearest first."""
    from embae.trainer.search import Search
    through, found = Search(vectors), []
    for query in asked:
        left_out = vectors.junk if query.key is None else vectors.junk | vectors.are(*query.key)
        embedding = through.expanded(query.embedding, expand, left_out) if expand else query.embedding
        how = through.reranked if rerank else through.nearest
        images, distances = how(embedding, top, left_out)
        found.append(list(zip(images.tolist(), distances.tolist(), strict=True)))
    return found


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
    lines = []
    for query in tree["queries"]:
        lines += ["", f"{query['query']}: nearest of {tree['images']:,} images of {tree['gallery']}",
                  "rank  distance      camera     pid  key", "─" * 64]
        lines += [f"{one['rank']:4}  {one['distance']:8.3f}  {_seen(one, several):>10}  {_pid(one['pid']):>6}  "
                  f"{one['key']}" for one in query["matches"]]
    return "\n".join(lines[1:])


def _seen(match: dict[str, Any], several: bool) -> str:
    return f"{match['dataset']}:{match['camera']}" if several else match["camera"]


def _pid(pid: int | None) -> str:
    return "–" if pid is None else str(pid)


def _draw(path: Path, tree: dict[str, Any], asked: list[Query], found: list[list[tuple[int, float]]], pointed: Pointed,
          vectors: Vectors) -> None:
    from embae.trainer.search_picture import Shown, draw

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
    how = ", ".join(filter(None, ["each with its rank and its distance from the query", Refined.of(tree).brief]))
    draw(f"Nearest of {tree['images']:,} images of {tree['gallery']}", how, rows, path)
