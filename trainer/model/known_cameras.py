"""Which of a model's cameras an image is of: decided here, for training, scoring, extraction and search alike.

A model has statistics of cameras (dataset, camid), and remembers what their owner calls them. The camids of a folder
are not the same for ever: who adds a folder that sorts before the others numbers all anew. So a camera is the one of
its name where the model and the dataset both name it, and that of its number where one of them does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from embae.datasets.sampling.view import View

Camera = tuple[str, int]
"""(dataset, camid), camid as the dataset had it when the model first met the camera."""


@dataclass(frozen=True)
class KnownCameras:
    """The cameras that a model has statistics of.

    Attributes:
        cameras: In the order of its tables.
        names: What those are called that have a name; no two of a dataset alike.
    """

    cameras: Sequence[Camera] = ()
    names: Mapping[Camera, str] = field(default_factory=dict)

    @cached_property
    def _places(self) -> dict[Camera, int]:
        return {camera: number for number, camera in enumerate(self.cameras)}

    @cached_property
    def _named(self) -> dict[tuple[str, str], int]:
        return {(camera[0], name): self._places[camera] for camera, name in self.names.items()}

    def index_of(self, camera: Camera, name: str | None = None) -> int:
        """Where a dataset's camera stands, −1 where it does not.

        Args:
            camera: (dataset, camid) in the dataset's numbers.
            name: What the dataset calls it.
        """
        if name is not None and (camera[0], name) in self._named:
            return self._named[camera[0], name]
        if name is not None and camera in self.names:
            return -1  # that number was another camera's
        return self._places.get(camera, -1)

    def by_label(self, dataset: str, said: str | int) -> int:
        """Where the camera stands that a person calls so, by its name or its number; −1 where none is called so."""
        if isinstance(said, str):
            number = int(said) if said.isascii() and said.isdecimal() and len(said) < 10 else -1
            return self._named.get((dataset, said), self._places.get((dataset, number), -1))
        return self._places.get((dataset, said), -1)

    def numbers(self, view: View, rows: np.ndarray) -> np.ndarray:
        """Where the camera of each of a view's rows stands: `(N,)` int64, −1 where it does not."""
        dataset, camid = view.locate(rows)[0], view.column("camid", rows)
        pairs, inverse = np.unique(np.stack([dataset, camid], 1), axis=0, return_inverse=True)
        cameras = [(view.names[number], int(one)) for number, one in pairs]
        found = np.array([self.index_of(camera, view.camera_names.get(camera)) for camera in cameras], np.int64)
        return found[inverse.reshape(-1)]

    def unknown(self, view: View) -> list[Camera]:
        """The cameras of a view that are none of these, sorted, in the view's numbers."""
        return [camera for camera in view.cameras() if self.index_of(camera, view.camera_names.get(camera)) < 0]

    def by_number(self, view: View) -> list[Camera]:
        """The cameras of a view that have a name and are found by their number alone, for want of one here; sorted."""
        found = []
        for camera in view.cameras():
            name = view.camera_names.get(camera, str(camera[1]))
            place = self.index_of(camera, name)
            if place >= 0 and name != str(camera[1]) and self.cameras[place] not in self.names:
                found.append(camera)
        return found

    def joined(self, view: View) -> KnownCameras:
        """These, in their places, and behind them the other cameras of a view.

        A camera whose number another one has here gets the next that is free. One that had no name gets the view's.
        """
        cameras, names = list(self.cameras), dict(self.names)
        for camera in view.cameras():
            name, place = view.camera_names.get(camera), self.index_of(camera, view.camera_names.get(camera))
            if place >= 0:
                own = self.cameras[place]
            else:
                own = camera
                if camera in self._places:
                    taken = [camid for dataset, camid in [*cameras, *view.cameras()] if dataset == camera[0]]
                    own = (camera[0], max(taken) + 1)
                cameras.append(own)
            if name is not None:
                names[own] = name
        return KnownCameras(cameras, names)


def listed(cameras: Sequence[Camera], names: Mapping[Camera, str], most: int | None = 5) -> str:
    """Some cameras by name, or by number where they have none, such as ``door, hall``."""
    more = most is not None and len(cameras) > most
    return ", ".join(names.get(camera, str(camera[1])) for camera in cameras[:most]) + ", …" * more


def tell(cameras: Sequence[Camera], names: Mapping[Camera, str], most: int | None = 5) -> str:
    """The same of several datasets, such as ``door, hall of station; 1, 2 of park``."""
    datasets = dict.fromkeys(dataset for dataset, _ in cameras)
    return "; ".join(f"{listed([camera for camera in cameras if camera[0] == dataset], names, most)} of {dataset}"
                     for dataset in datasets)
