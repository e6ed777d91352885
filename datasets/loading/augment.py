"""Augmentation as numbers, drawn for each slot of a batch before any image is read.

The numbers are a pure function of (seed, stage, step, slot) and are passed to the decoding pipeline as arguments, so
the same image in the same slot gives the same pixels for any world size and number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from embae.datasets.fields import Flag, Fraction, Strict, Whole
from embae.datasets.sampling.keyed_random import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSpec:
    """The input of a model: height and width in pixels, mean and standard deviation of channels scaled to 0…1."""

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def margin(self) -> tuple[int, int]:
        """Height and width before a random crop: 9/8 of the input (Hermans et al. 2017)."""
        return round(self.height * 9 / 8), round(self.width * 9 / 8)

    @property
    def fill(self) -> list[int]:
        """The mean colour, 0…255, for padding and erasing: it is about 0 after normalisation."""
        return [round(255 * channel) for channel in self.mean]


class Augment(Strict):
    """What may happen to a training image: ``augment`` of a recipe's stage."""

    flip: Flag = False
    """Mirror half of the images."""
    crop: Flag = False
    """Resize to 9/8 of the input and crop at random."""
    pad: Whole = 0
    """Pixels of padding around the image before a random crop."""
    erase: Fraction = 0.0
    """Probability of erasing a rectangle of 2…40 % of the area (Zhong et al. 2017)."""
    brightness: Fraction = 0.0
    """The factor is drawn from 1 − x … 1 + x."""
    contrast: Fraction = 0.0
    """The factor is drawn from 1 − x … 1 + x."""
    saturation: Fraction = 0.0
    """The factor is drawn from 1 − x … 1 + x."""
    hue: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0
    """The hue is turned by −x … x degrees."""

    @property
    def crops(self) -> bool:
        """Whether images are cropped at a random position."""
        return self.crop or self.pad > 0

    @property
    def colours(self) -> bool:
        """Whether augmentation changes colours."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def at_most_flip(self) -> bool:
        """Whether an image has at most two forms: itself and its mirror image."""
        return self in (Augment(), Augment(flip=True))

    def read_size(self, spec: ImageSpec) -> tuple[int, int]:
        """Height and width of an image before the crop."""
        return spec.margin if self.crop else spec.size


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
