"""The images that a model takes."""

from __future__ import annotations

from dataclasses import dataclass

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
