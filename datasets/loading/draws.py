"""Augmentation as numbers, drawn for each slot of a batch before any image is read.

The numbers are a pure function of (seed, stage, step, slot) and are passed to the decoding pipeline as arguments, so
the same image in the same slot gives the same pixels for any world size and number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embae.datasets.loading.augment import Augment
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.keyed_random import generator


@dataclass(frozen=True)
class Draws:
    """The random numbers of the augmentation of a batch of N images.

    Attributes:
        flip: `(N,)` int32, 1 for a mirrored image (mirrored last, after cropping and erasing).
        anchor: `(N, 2)` float32, top and left of the crop in pixels of the resized image; may be negative (padding).
        erase: `(N, 4)` float32, top, left, height, width in pixels of the crop; height 0 where nothing is erased.
        colour: `(N, 4)` float32, factors of brightness, contrast, saturation, and the hue in degrees.
    """

    flip: np.ndarray
    anchor: np.ndarray
    erase: np.ndarray
    colour: np.ndarray

    def take(self, slots: slice | np.ndarray) -> Draws:
        """The numbers of some slots."""
        return Draws(self.flip[slots], self.anchor[slots], self.erase[slots], self.colour[slots])


def draw(augment: Augment, spec: ImageSpec, slots: int, *, seed: int, stage: str, step: int) -> Draws:
    """Draws the augmentation of a global batch with `slots` images.

    The numbers of a slot come from one row of a table, in fixed columns, so enabling one kind of augmentation does not
    change the others.
    """
    uniform = generator(seed, stage, "augment", step).random((slots, 12))
    flip = (uniform[:, 0] < 0.5).astype(np.int32) * augment.flip
    spare = np.subtract(augment.read_size(spec), spec.size)
    anchor = np.floor(uniform[:, 1:3] * (spare + 2 * augment.pad + 1)) - augment.pad
    if not augment.crops:
        anchor = np.zeros((slots, 2))
    # Area and aspect ratio as in Zhong et al.; a rectangle that does not fit is cut, not drawn again.
    area = (0.02 + 0.38 * uniform[:, 4]) * spec.height * spec.width
    aspect = 0.3 ** (1 - 2 * uniform[:, 5])
    height = np.minimum(np.round(np.sqrt(area * aspect)), spec.height)
    width = np.minimum(np.round(np.sqrt(area / aspect)), spec.width)
    shape = np.stack([height, width], 1) * (uniform[:, 3:4] < augment.erase)
    corner = np.floor(uniform[:, 6:8] * (np.array(spec.size) - shape + 1))
    reach = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
    colour = np.array([1, 1, 1, 0]) + (2 * uniform[:, 8:12] - 1) * reach
    return Draws(flip, anchor.astype(np.float32), np.concatenate([corner, shape], 1).astype(np.float32),
                 colour.astype(np.float32))
