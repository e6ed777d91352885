"""The settings of augmentation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from embae.datasets.fields import Flag, Fraction, Strict, Whole
from embae.datasets.loading.image_spec import ImageSpec


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
