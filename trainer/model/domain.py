"""What a model is built for: the cameras, datasets and identities that its parts tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from embae.trainer.model.known_cameras import KnownCameras

Head = tuple[str | int, ...]
"""The images that a nuisance head serves: (dataset, camid), (dataset,) or, empty, all images."""


@dataclass(frozen=True)
class ModelDomain:
    """What the data of a model determine about its sizes.

    Attributes:
        heads: The images that each nuisance head serves, in the order of the weights.
        classes: Number of identities that the classifier tells apart.
        known_cameras: The cameras that the model is calibrated on, in the order of its tables.
    """

    heads: Sequence[Head] = ()
    classes: int = 0
    known_cameras: KnownCameras = field(default_factory=KnownCameras)
