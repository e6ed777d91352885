"""Images in any of the usual forms → uint8 pixels `(3, H, W)`, and from these the input of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tf
from PIL import Image
from torch import Tensor

from embae.datasets.errors import DataError
from embae.datasets.images.encoding import MODES, open_image, upright
from embae.datasets.loading.image_spec import ImageSpec

One = str | Path | Image.Image | np.ndarray | Tensor
Images = One | Sequence[One]

_EXPECTED = ("a path, a PIL image, a uint8 array (H, W, 3) or (B, H, W, 3), or a tensor (3, H, W) or (B, 3, H, W), "
           "uint8 or of numbers from 0 to 1")


def one_by_one(images: Images) -> list[One]:
    """The images one by one; none is read yet.

    Raises:
        DataError: They are not images, or not of the shape of images.
    """
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        if images.ndim == 3:
            return [images]
        if images.ndim == 4:
            return list(images)
        raise DataError(f"images: found {_describe(images)}; expected {_EXPECTED}")
    if isinstance(images, Sequence):
        return [one for some in images for one in one_by_one(some)]
    raise DataError(f"images: found {_describe(images)}; expected {_EXPECTED}, or a list of these")


def pixels(image: One) -> Tensor:
    """The pixels of one image: uint8 `(3, H, W)`.

    Numbers from 0 to 1 are rounded to the 8 bits that cameras and the training images have, so that the form an image
    comes in makes no difference.

    Raises:
        DataError: There is no such file, it is not an image, or its shape, type or values are not those of an image.
    """
    if isinstance(image, (str, Path)):
        try:
            data = Path(image).read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f"{image}: cannot be read ({getattr(error, 'strerror', None) or error}); expected an image "
                            "file") from error
        with open_image(data, str(image)) as file:
            return _from_array(np.asarray(upright(file, str(image))))
    if isinstance(image, Image.Image):
        if image.mode not in MODES:
            raise DataError(f"a PIL image of mode {image.mode}; expected 8 bits a channel: convert it first")
        return _from_array(np.asarray(upright(image, "a PIL image")))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel() or (
            image.dtype != torch.uint8 and not image.is_floating_point()):
        raise DataError(f"images: found {_describe(image)}; expected {_EXPECTED}")
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):  # NaN neither
        raise DataError(f"images: found a tensor of numbers from {low:.3g} to {high:.3g}; expected 0 to 1, before any "
                        "normalisation, or uint8")
    return image.float().mul(255).round().to(torch.uint8)


def normalised(images: Sequence[Tensor], spec: ImageSpec) -> Tensor:
    """Pixels of one size, normalised for a model: `(B, 3, H, W)` float32, channels last in memory."""
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (spec.mean, spec.std))
    return ((torch.stack(list(images)) - mean) / std).contiguous(memory_format=torch.channels_last)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes uint8 `(3, H, W)` to a height and width as DALI does: bilinear, with a wider filter when it shrinks.

    It computes in float32 and rounds at the end. 1 in 170 values differ by one grey level from DALI's, none by more.
    With Pillow and torchvision's uint8, which round between the two directions, a fifth of them differ.
    """
    if image.shape[1:] == size:
        return image
    return tf.resize(image.float(), list(size), antialias=True).round().clamp(0, 255).to(torch.uint8)


def _from_array(image: np.ndarray) -> Tensor:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"images: found {_describe(image)}; expected {_EXPECTED}")
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def _describe(what: Any) -> str:
    if isinstance(what, (np.ndarray, Tensor)):
        kind = "an array" if isinstance(what, np.ndarray) else "a tensor"
        return f"{kind} of {str(what.dtype).removeprefix('torch.')}, shape {tuple(what.shape)}"
    return f"{type(what).__name__} {what!r:.80}"
