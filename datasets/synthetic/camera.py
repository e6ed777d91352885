"""A camera: where it hangs, where it looks, and what it does to colours and edges."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from embae.datasets.synthetic.streams import between

Span = tuple[float, float]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class CameraStyle:
    """What the cameras of a domain have in common; every camera draws its own value from each span.

    Attributes:
        tint: Gains of red, green and blue in the domain's light.
        tint_spread: Deviation of a camera's own gains from it.
        saturation: Share of the colour that is kept.
        exposure: Factor on the light.
        gamma: Above 1 darkens the middle tones.
        haze: Black level (0 … 1).
        blur: Radius in pixels of an image 128 high.
        noise: Standard deviation (0 … 255).
        detail: Resolution, as a share of the image's.
        quality: Of the camera's own JPEG stream.
        elevation: Angle, in radians, at which it looks down.
        crop_error: Deviation of the box around a person, as a share of its size.
        occluded: Share of images where something stands in front.
    """

    tint: tuple[float, float, float]
    tint_spread: float
    saturation: Span
    exposure: Span
    gamma: Span
    haze: Span
    blur: Span
    noise: Span
    detail: Span
    quality: Span
    elevation: Span
    crop_error: Span
    occluded: Span


@dataclass(frozen=True)
class Camera:
    """One camera of a domain, see :class:`CameraStyle`."""

    matrix: tuple[tuple[float, float, float], ...]
    gamma: float
    haze: float
    blur: float
    noise: float
    detail: float
    quality: int
    elevation: float
    crop_error: float
    zoom: float
    occluded: float
    heading: float
    heading_spread: float
    light: float

    def record(self, rng: np.random.Generator, picture: Image.Image) -> Image.Image:
        """``picture``, in neutral light, as this camera delivers it; ``rng`` is the shot's own stream."""
        if self.detail < 0.97:
            small = (max(8, round(picture.width * self.detail)), max(16, round(picture.height * self.detail)))
            picture = picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)
        blur = self.blur * picture.height / 128 * float(rng.uniform(0.6, 1.4))
        if blur > 0.15:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        light: Pixels = np.asarray(picture, np.float32) / np.float32(255)
        # daylight and automatic exposure wander from shot to shot
        matrix = np.array(self.matrix, np.float32) * np.float32(math.exp(0.06 * rng.normal()))
        light = np.clip(light @ matrix.T, 0, 1) ** np.float32(self.gamma)
        light = self.haze + (1 - self.haze) * light
        grain = rng.standard_normal(light.shape, np.float32) * np.float32(self.noise)
        seen = np.clip(light * 255 + grain, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(seen).save(stream, "JPEG", quality=self.quality)
        return Image.open(stream)


def hang(rng: np.random.Generator, style: CameraStyle) -> Camera:
    """A camera of a domain; ``rng`` is the camera's own stream."""
    gains = np.array(style.tint) * np.exp(style.tint_spread * rng.normal(size=3))
    grey = np.full((3, 3), (0.3, 0.59, 0.11))
    saturation = between(rng, style.saturation)
    # sensors differ in more than gains: a little of each channel leaks into the others
    leak = rng.normal(0, 0.02, (3, 3)) * (1 - np.eye(3))
    mixing = saturation * np.eye(3) + (1 - saturation) * grey + leak
    mixing /= mixing.sum(1, keepdims=True)
    matrix = between(rng, style.exposure) * gains[:, None] * mixing
    return Camera(
        matrix=tuple((float(r), float(g), float(b)) for r, g, b in matrix),
        gamma=between(rng, style.gamma),
        haze=between(rng, style.haze),
        blur=between(rng, style.blur),
        noise=between(rng, style.noise),
        detail=between(rng, style.detail),
        quality=round(between(rng, style.quality)),
        elevation=between(rng, style.elevation),
        crop_error=between(rng, style.crop_error),
        zoom=float(rng.uniform(0.9, 1.04)),
        occluded=between(rng, style.occluded),
        # a corridor: most people come towards the camera, leave it, or cross
        heading=float(rng.choice([0.0, 0.5, 1.4, 2.4, math.pi, -2.4, -1.4, -0.5])),
        heading_spread=float(rng.uniform(0.3, 0.9)),
        light=float(rng.uniform(-1, 1)),
    )
