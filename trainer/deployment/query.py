"""What a search looks for: an image file or an image of the gallery, its camera and its embedding."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.trainer.model.known_cameras import listed, tell
from embae.trainer.runs.trained_model import TrainedModel

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from embae.datasets.image_source import ImageSource
    from embae.trainer.deployment.load import Loaded
    from embae.trainer.deployment.vectors import Vectors
    from embae.trainer.model.known_cameras import Camera
    from embae.trainer.recipe.scoring import TTA


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


def _extracted(where: Path, trained: TrainedModel, model: Loaded, tta: TTA) -> Vectors:
    """The embeddings in a file."""
    from embae.trainer.deployment.vectors import Vectors
    vectors = Vectors.open(where)
    if vectors.origin.model != model.key or vectors.width != model.width:
        raise DataError(f"{where}: embeddings of another model or another test-time augmentation than {tta}; make "
                        f"them by embae extract {trained.run} {vectors.origin.root} -o {where}")
    return vectors


def _embedded(pointed: ImageSource, trained: TrainedModel, model: Loaded, tta: TTA, cache: Path) -> Vectors:
    """The gallery's embeddings, extracted if need be."""
    import torch

    from embae.datasets.index.records import SPLITS
    from embae.trainer.deployment.extract import extract_to, origin
    from embae.trainer.deployment.vectors import Vectors
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.runtime.distributed import World
    made = origin(model.key, pointed, ("gallery",) if pointed.count("gallery") else SPLITS)
    path = cache / f"search-{model.key[:8]}-{pointed.name}-{pointed.fingerprint[:8]}-{'-'.join(made.splits)}.arrow"
    world = World(0, 0, 1, torch.device(model.device))
    inference = Inference(model.spec, world, cache, Reading.of_recipe(trained.recipe), tta)
    extract_to(path, made, model.net, pointed, inference)
    return Vectors.open(path)


def _origin_of(vectors: Vectors) -> ImageSource:
    """The dataset or merged set that embeddings are of, where it was."""
    from embae.datasets.image_source import ImageSource
    from embae.datasets.remote.url import parse_location
    pointed = ImageSource.open(parse_location(vectors.origin.root))
    if pointed.fingerprint != vectors.origin.fingerprint:
        raise DataError(f"{pointed.root}: the images are others than those that were extracted; extract them again")
    return pointed


def _query(said: str, camera: str | None, pointed: ImageSource | None, vectors: Vectors, model: Loaded) -> Query:

    from embae.datasets.images.encoding import opened, upright
    if os.path.isfile(said):
        with opened(Path(said).read_bytes(), said) as file:
            image = upright(file, said)
        seen = _camera(camera, vectors, model) if camera else None
        return Query(said, image, seen, None, _embedding(said, image, seen, vectors, model), None)
    from embae.datasets.index.records import ROLES
    pointed = pointed or _origin_of(vectors)
    number, row = _row(said, pointed)
    index = pointed.indexes[number]
    known = bool(index.labelled[row]) and index.role[row] == ROLES.index("person")
    image, seen = _pixels(pointed, index.name, row), (index.name, int(index.camid[row]))
    return Query(said, image, seen, int(index.pid[row]) if known else None,
                 _embedding(said, image, seen, vectors, model), (index.name, row))


def _row(said: str, pointed: ImageSource) -> tuple[int, int]:
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
    place = known.index_of(camera, vectors.camera_names.get(camera)) if camera else -1
    if known.cameras and place < 0:
        what = (f"the model is not calibrated on camera {vectors.camera_name(camera)} of {camera[0]}" if camera else
                "which camera it is from is not said (--camera)")
        note(f"--query {said}: {what}; it goes through the statistics that all cameras share. The model knows "
             f"{tell(known.cameras, known.names)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would tell a programmer the same
        found: np.ndarray = model(image, known.cameras[place] if place >= 0 else None)[0].numpy()
    return found


def _pixels(pointed: ImageSource, dataset: str, row: int) -> Image.Image:
    from embae.datasets.images.encoding import decoded
    from embae.datasets.index.shard_reader import ShardReader, where
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
    if dataset not in vectors.datasets and (place := known.by_label(dataset, said)) >= 0:
        return known.cameras[place]
    wanted = listed(cameras, by_name, None) if len(vectors.datasets) == 1 else tell(cameras, by_name, None)
    raise DataError(f"--camera {text}: {vectors.origin.name} has {wanted}" + (
        f"; the model knows {tell(known.cameras, known.names)}" if known.cameras else ""))


def _found(asked: list[Query], vectors: Vectors, top: int, rerank: bool,
           expand: int) -> list[list[tuple[int, float]]]:
    """Images and distances for each query, nearest first."""
    from embae.trainer.deployment.search import Search
    through, found = Search(vectors), []
    for query in asked:
        left_out = vectors.junk if query.key is None else vectors.junk | vectors.is_row(*query.key)
        embedding = through.expanded(query.embedding, expand, left_out) if expand else query.embedding
        how = through.reranked if rerank else through.nearest
        images, distances = how(embedding, top, left_out)
        found.append(list(zip(images.tolist(), distances.tolist(), strict=True)))
    return found
