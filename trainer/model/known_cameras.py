"""The cameras that a model has statistics of, and which of them a dataset's camera is.

Training, scoring, extraction and search all decide this here. A model has statistics of cameras (dataset, camid), and
stores the names that their owner gives them. The camids of a folder may change: a new folder that sorts before the
others renumbers them all. So cameras are matched by name if the model and the dataset both name them, and by number
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from embae.datasets.sampling.view import View

Camera = tuple[str, int]
"""(dataset, camid), with the camid that the camera had when the model was first calibrated on it."""


@dataclass(frozen=True)
class KnownCameras:
    """The cameras that a model has statistics of.

    Attributes:
        cameras: In the order of the model's tables.
        names: The names of those cameras that have one; names are unique within a dataset.
    """

    cameras: Sequence[Camera] = ()
    names: Mapping[Camera, str] = field(default_factory=dict)

    @cached_property
    def _index(self) -> dict[Camera, int]:
        return {camera: index for index, camera in enumerate(self.cameras)}

    @cached_property
    def _index_by_name(self) -> dict[tuple[str, str], int]:
        return {(camera[0], name): self._index[camera] for camera, name in self.names.items()}

    def index_of(self, camera: Camera, name: str | None = None) -> int:
        """The index of a dataset's camera in the model's tables, −1 for an unknown camera.

        Args:
            camera: (dataset, camid) in the dataset's numbers.
            name: The name in the dataset.
        """
        if name is not None and (camera[0], name) in self._index_by_name:
            return self._index_by_name[camera[0], name]
        if name is not None and camera in self.names:
            return -1  # another camera had that number
        return self._index.get(camera, -1)

    def by_label(self, dataset: str, label: str | int) -> int:
        """The index of the camera with this name or number, as a person writes it; −1 if there is none."""
        if isinstance(label, str):
            number = int(label) if label.isascii() and label.isdecimal() and len(label) < 10 else -1
            return self._index_by_name.get((dataset, label), self._index.get((dataset, number), -1))
        return self._index.get((dataset, label), -1)

    def indices(self, view: View, rows: np.ndarray) -> np.ndarray:
        """The index of the camera of each of a view's rows: `(N,)` int64, −1 for an unknown camera."""
        dataset, camid = view.locate(rows)[0], view.column("camid", rows)
        pairs, inverse = np.unique(np.stack([dataset, camid], 1), axis=0, return_inverse=True)
        cameras = [(view.names[number], int(camid)) for number, camid in pairs]
        indices = np.array([self.index_of(camera, view.camera_names.get(camera)) for camera in cameras], np.int64)
        return indices[inverse.reshape(-1)]

    def unknown(self, view: View) -> list[Camera]:
        """The cameras of a view that are not among these, sorted, in the view's numbers."""
        return [camera for camera in view.cameras() if self.index_of(camera, view.camera_names.get(camera)) < 0]

    def matched_by_number(self, view: View) -> list[Camera]:
        """The cameras of a view that have a name, but match a camera without a name here, by number alone; sorted."""
        matched = []
        for camera in view.cameras():
            name = view.camera_names.get(camera, str(camera[1]))
            index = self.index_of(camera, name)
            if index >= 0 and name != str(camera[1]) and self.cameras[index] not in self.names:
                matched.append(camera)
        return matched

    def extended_by(self, view: View) -> KnownCameras:
        """These cameras at their indices, followed by the other cameras of a view.

        A new camera whose number another camera has here gets the next free number. A camera without a name gets the
        view's name.
        """
        cameras, names = list(self.cameras), dict(self.names)
        for view_camera in view.cameras():
            name = view.camera_names.get(view_camera)
            index = self.index_of(view_camera, name)
            if index >= 0:
                camera = self.cameras[index]
            else:
                camera = view_camera
                if camera in self._index:
                    used = [camid for dataset, camid in [*cameras, *view.cameras()] if dataset == camera[0]]
                    camera = (camera[0], max(used) + 1)
                cameras.append(camera)
            if name is not None:
                names[camera] = name
        return KnownCameras(cameras, names)


def list_cameras(cameras: Sequence[Camera], names: Mapping[Camera, str], most: int | None = 5) -> str:
    """Cameras by name, or by number if they have none, such as ``door, hall``."""
    more = most is not None and len(cameras) > most
    return ", ".join(names.get(camera, str(camera[1])) for camera in cameras[:most]) + ", …" * more


def describe_cameras(cameras: Sequence[Camera], names: Mapping[Camera, str], most: int | None = 5) -> str:
    """Cameras of several datasets, such as ``door, hall of station; 1, 2 of park``."""
    by_dataset: dict[str, list[Camera]] = {}
    for camera in cameras:
        by_dataset.setdefault(camera[0], []).append(camera)
    return "; ".join(f"{list_cameras(group, names, most)} of {dataset}" for dataset, group in by_dataset.items())
