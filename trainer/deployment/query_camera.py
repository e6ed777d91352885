"""The camera of a query file: which one ``--camera`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embae.datasets.errors import DataError
from embae.trainer.model.known_cameras import describe_cameras, list_cameras

if TYPE_CHECKING:
    from embae.trainer.deployment.vectors import Vectors
    from embae.trainer.model.known_cameras import Camera, KnownCameras


def find_camera(text: str, vectors: Vectors, model_cameras: KnownCameras) -> Camera:
    """Finds a camera of the gallery, or another one that the model knows, by its name or number.

    Args:
        text: ``NAME``, ``CAMID``, ``DATASET:NAME`` or ``DATASET:CAMID``.
        vectors: The gallery, whose numbers count.
        model_cameras: The cameras that the model is calibrated on.

    Raises:
        DataError: There is no such camera, or several datasets have one.
    """
    cameras = sorted({*vectors.cameras(), *vectors.camera_names})
    names = {camera: vectors.camera_name(camera) for camera in cameras}
    dataset, _, label = text.rpartition(":")
    for matches in ([camera for camera in cameras if names[camera] == text],
                    [camera for camera in cameras if (camera[0], names[camera]) == (dataset, label)],
                    [camera for camera in cameras if camera[0] == dataset and str(camera[1]) == label]):
        if len(matches) > 1:
            choices = " or ".join(f"{camera[0]}:{text}" for camera in matches)
            raise DataError(f"--camera {text}: several datasets of {vectors.origin.name} have this camera; give "
                            f"{choices}")
        if matches:
            return matches[0]
    if dataset not in vectors.datasets and (place := model_cameras.by_label(dataset, label)) >= 0:
        return model_cameras.cameras[place]
    describe = list_cameras if len(vectors.datasets) == 1 else describe_cameras
    model_knows = describe_cameras(model_cameras.cameras, model_cameras.names)
    raise DataError(f"--camera {text}: {vectors.origin.name} has {describe(cameras, names, None)}"
                    + (f"; the model knows {model_knows}" if model_cameras.cameras else ""))
