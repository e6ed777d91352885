"""Checks one encoded image and converts it for a shard: to an RGB JPEG that the training decoder accepts.

DALI does not survive bytes that it cannot decode, so every image that passes was decoded in full once.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS, check_jpeg

# Of images that are encoded here. Decoding is most of the cost of loading in a training step. Chosen by measurement on
# images of people, 128×64, where little detail is left to lose: MobileNetV2s trained on shards of quality 95 without
# subsampling, scored on CUHK01, CUHK03 and PKU-Reid, have Rank-1 0.184, 0.113, 0.375 at quality 95 without subsampling,
# 0.181, 0.113, 0.375 at 90 without, 0.186, 0.110, 0.372 at 90 with halved chroma, and 0.171, 0.114, 0.368 at 85 with
# halved chroma. Decoding takes 0.20 ms instead of 0.25 ms.
QUALITY, SUBSAMPLING = 90, "4:2:0"

# Formats with a built-in decoder. No others that Pillow opens: EPS, for example, is executed by Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

# How to turn an image upright, by its Exif orientation. Not ImageOps.exif_transpose: it also rewrites other metadata,
# and fails where they are damaged.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare(data: bytes, name: str, size: tuple[int, int] | None = None) -> tuple[bytes, int, int]:
    """Checks one encoded image by decoding all of it, and converts it to an RGB JPEG.

    An upright RGB JPEG that already has the requested size stays the same, byte for byte. Every other image is turned
    upright, converted to RGB without transparency, resized if requested, and encoded at `QUALITY` with `SUBSAMPLING`.

    Args:
        data: The encoded image.
        name: What to call it in messages.
        size: (height, width) in pixels to resize to, by antialiased bilinear interpolation as in training; None keeps
            the size of the image.

    Returns:
        JPEG bytes, height, width.

    Raises:
        DataError: The data is empty, not an image, cut short or damaged, or has more than `MAX_PIXELS` or 8 bits.
    """
    with warnings.catch_warnings():
        # Pillow's limit of pixels is higher than MAX_PIXELS; other warnings (odd metadata) do not make an image bad.
        warnings.simplefilter("ignore")
        with open_image(data, name) as image:
            return _prepare(image, data, name, size)


@contextmanager
def open_image(data: bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """Opens an encoded image; only its header is read.

    Args:
        data: The encoded image.
        name: What to call it in messages.

    Raises:
        DataError: The data is empty, not an image, or has more than `MAX_PIXELS` or 8 bits.
    """
    if not data:
        raise DataError(f"{name}: the file is empty, expected an image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; expected at most {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:  # its text contains a memory address
        raise DataError(f"{name}: not an image of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's parsers raise any exception for a damaged header
        raise DataError(f"{name}: not an image of a known kind ({', '.join(FORMATS)}): {_describe(error)}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{name}: declares {image.width} × {image.height} pixels, expected at most "
                            f"{MAX_PIXELS:,} in total")
        if image.mode not in MODES:
            raise DataError(f"{name}: pixels of mode {image.mode}, expected 8 bits per channel; convert it first")
        yield image


def upright(image: Image.Image, name: str) -> Image.Image:
    """The pixels of an image as a person sees them: in RGB without transparency, turned by its Exif orientation.

    Args:
        image: From `open_image`.
        name: What to call it in messages.

    Raises:
        DataError: The image is damaged or cut short.
    """
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{name}: damaged or cut short ({_describe(error)})") from error
    orientation, rgb = _orientation(image), image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _prepare(
    image: ImageFile.ImageFile, data: bytes, name: str, size: tuple[int, int] | None
) -> tuple[bytes, int, int]:
    is_jpeg = image.format == "JPEG"
    unchanged = False
    height, width = image.height, image.width
    if is_jpeg:
        check_jpeg(data, name)
        unchanged = image.mode == "RGB" and _orientation(image) == 1 and size in (None, (height, width))
    if unchanged:
        # Its pixels are not used. An eighth of the size takes two thirds of the time and nevertheless decodes all data:
        # damage is found before the transform that a smaller image saves.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
    rgb = upright(image, name)
    if unchanged:
        return data, height, width
    if size is not None and (rgb.height, rgb.width) != size:
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)  # with antialiasing
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return out.getvalue(), rgb.height, rgb.width


def _orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 if there is none; 0 if it is ambiguous, so that another decoder may find another one.

    DALI too turns images by their Exif orientation, and reads it from some damaged headers that Pillow finds empty.
    """
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return 0
    if value is None:
        header = image.info.get("exif", b"")
        return 0 if any(_ORIENTATION.to_bytes(2, order) in header for order in ("big", "little")) else 1
    return value if type(value) is int and 1 <= value <= 8 else 0


def decode_jpeg(data: bytes, name: str) -> Image.Image:
    """The pixels of a JPEG from a shard; its reader has checked `jpeg.declared_size`.

    Args:
        data: The JPEG.
        name: What to call it in messages.

    Raises:
        DataError: The JPEG cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged JPEG
        raise DataError(f"{name}: cannot be decoded ({_describe(error)}); {_UNDECODABLE}") from error


_UNDECODABLE = "its bytes are those that were indexed, so the shard was made with them: shard the dataset again"


def _describe(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
