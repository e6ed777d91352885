"""What a search looks for: an image file or an image of the gallery's dataset, its camera and its embedding."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.index.records import ROLES
from embae.trainer.deployment.query_camera import find_camera
from embae.trainer.model.known_cameras import describe_cameras

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from embae.datasets.image_source import ImageSource
    from embae.trainer.deployment.gallery import Gallery
    from embae.trainer.deployment.load import Loaded
    from embae.trainer.deployment.vectors import Vectors
    from embae.trainer.model.known_cameras import Camera


@dataclass(frozen=True)
class Query:
    """What a search looks for.

    Attributes:
        text: The file or key on the command line.
        image: Its pixels.
        camera: (dataset, camid), if it is known.
        pid: Its identity in the gallery's dataset, if it is known.
        embedding: `(D,)`.
        gallery_row: (dataset, row of its index) of an image of the gallery's dataset; None for a file.
    """

    text: str
    image: Image.Image
    camera: Camera | None
    pid: int | None
    embedding: np.ndarray
    gallery_row: tuple[str, int] | None


def read_query(text: str, camera: str | None, gallery: Gallery, model: Loaded) -> Query:
    """Reads a query and computes its embedding.

    Args:
        text: An image file, or the key of an image in the gallery's dataset.
        camera: The camera of a file, as on the command line; None if it is not known.
        gallery: The gallery.
        model: The model.

    Raises:
        DataError: There is no such image or no such camera, or the image cannot be read.
    """
    return _read_file(text, camera, gallery.vectors, model) if os.path.isfile(text) else _read_row(text, gallery, model)


def _read_file(text: str, camera_text: str | None, vectors: Vectors, model: Loaded) -> Query:
    from embae.datasets.images.encoding import open_image, upright
    with open_image(Path(text).read_bytes(), text) as file:
        image = upright(file, text)
    camera = find_camera(camera_text, vectors, model.net.known_cameras) if camera_text else None
    return Query(text, image, camera, None, _embed(text, image, camera, vectors, model), None)


def _read_row(text: str, gallery: Gallery, model: Loaded) -> Query:
    number, row = _find_row(text, gallery.source)
    index = gallery.source.indexes[number]
    image, camera = gallery.read_image(index.name, row), (index.name, int(index.camid[row]))
    is_person = bool(index.labelled[row]) and index.role[row] == ROLES.index("person")
    pid = int(index.pid[row]) if is_person else None
    return Query(text, image, camera, pid, _embed(text, image, camera, gallery.vectors, model), (index.name, row))


def _find_row(text: str, source: ImageSource) -> tuple[int, int]:
    """Number of the dataset that has an image of this key, and the image's row."""
    import pyarrow.compute as pc
    dataset, _, key = text.rpartition(":")
    places = [(number, row) for number, index in enumerate(source.indexes)
              if dataset in ("", index.name) and (row := pc.index(index.keys, key).as_py()) >= 0]
    if not places:
        raise DataError(f"--query {text}: no such file, and {source.name} has no image of this key")
    if len(places) > 1:
        names = [f"{source.indexes[number].name}:{key}" for number, _ in places]
        raise DataError(f"--query {text}: several datasets of {source.name} have this key; give {' or '.join(names)}")
    return places[0]


def _embed(text: str, image: Image.Image, camera: Camera | None, vectors: Vectors, model: Loaded) -> np.ndarray:
    """A query's embedding with the statistics of its camera; notes if the model has none."""
    cameras = model.net.known_cameras
    place = cameras.index_of(camera, vectors.camera_names.get(camera)) if camera else -1
    if cameras.cameras and place < 0:
        reason = (f"the model is not calibrated on camera {vectors.camera_name(camera)} of {camera[0]}" if camera else
                  "its camera is not known (give --camera)")
        note(f"--query {text}: {reason}; the statistics that all cameras share are used. The model knows "
             f"{describe_cameras(cameras.cameras, cameras.names)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model would warn a programmer of the same
        embedding: np.ndarray = model(image, cameras.cameras[place] if place >= 0 else None)[0].numpy()
    return embedding
