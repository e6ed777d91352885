"""One encoded image, checked and made into what a shard holds: an RGB JPEG that the training decoder will accept.

DALI does not survive bytes that it cannot decode, so whatever passes here has been decoded in full once.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import MAX_PIXELS, check_jpeg

# For what is encoded anew. Decoding is most of what a training step pays for loading. Chosen by measurement on real
# people, 128×64, where little is left to lose: CUHK01, CUHK03 and PKU-Reid scored by MobileNetV2s that were trained on
# shards of quality 95 without subsampling have Rank-1 0.181, 0.113, 0.375 at 90 without (at 95: 0.184, 0.113, 0.375),
# 0.186, 0.110, 0.372 at 90 with halved chroma, 0.171, 0.114, 0.368 at 85 with it. A decode takes 0.20 ms, not 0.25.
QUALITY, SUBSAMPLING = 90, "4:2:0"

# Formats with a decoder of their own. Not the rest of what Pillow opens: EPS, for one, is run by Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

# What turns an image upright, by its Exif orientation. Not ImageOps.exif_transpose: it rewrites the other metadata too,
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
    """Checks one encoded image by decoding all of it, and makes it an RGB JPEG.

    An upright RGB JPEG that already has the wanted size is passed through byte for byte. Everything else is turned
    upright, made RGB (transparency dropped), resized if asked, and stored at `QUALITY` with `SUBSAMPLING`.

    Args:
        data: The encoded image.
        name: What to call it in messages.
        size: (height, width) in pixels to resize to, by antialiased bilinear interpolation as in training; None keeps
            the image's own.

    Returns:
        JPEG bytes, height, width.

    Raises:
        DataError: Empty, not an image, cut short or damaged, of more than `MAX_PIXELS`, or of more than 8 bits.
    """
    with warnings.catch_warnings():
        # Its limit is higher than ours; other warnings (say, odd metadata) do not make an image bad.
        warnings.simplefilter("ignore")
        with opened(data, name) as image:
            return _prepare(image, data, name, size)


@contextmanager
def opened(data: bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """An encoded image whose head has been looked at, and nothing more.

    Args:
        data: The encoded image.
        name: What to call it in messages.

    Raises:
        DataError: Empty, not an image, of more than `MAX_PIXELS`, or of more than 8 bits.
    """
    if not data:
        raise DataError(f"{name}: the file is empty, wanted an image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; wanted at most {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:  # which would tell where its bytes lie in memory
        raise DataError(f"{name}: not an image of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's parsers raise whatever a damaged header makes them raise
        raise DataError(f"{name}: not an image of a known kind ({', '.join(FORMATS)}): {_why(error)}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{name}: declares {image.width} × {image.height} pixels, wanted at most {MAX_PIXELS:,} in "
                            "all")
        if image.mode not in MODES:
            raise DataError(f"{name}: pixels of mode {image.mode}, wanted 8 bits a channel; convert it first")
        yield image


def upright(image: Image.Image, name: str) -> Image.Image:
    """An image's pixels as a person sees them: in RGB (transparency dropped), turned as its Exif orientation says.

    Args:
        image: Opened, of one of `MODES`.
        name: What to call it in messages.

    Raises:
        DataError: Damaged or cut short.
    """
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{name}: damaged or cut short ({_why(error)})") from error
    orientation, rgb = _orientation(image), image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _prepare(
    image: ImageFile.ImageFile, data: bytes, name: str, size: tuple[int, int] | None
) -> tuple[bytes, int, int]:
    is_jpeg = image.format == "JPEG"
    kept = False
    height, width = image.height, image.width
    if is_jpeg:
        check_jpeg(data, name)
        kept = image.mode == "RGB" and _orientation(image) == 1 and size in (None, (height, width))
    if kept:
        # Nobody looks at its pixels: an eighth of them takes two thirds of the time, and all of the data is decoded all
        # the same, since what can be wrong in them is found before the transform that a smaller image saves.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
    rgb = upright(image, name)
    if kept:
        return data, height, width
    if size is not None and (rgb.height, rgb.width) != size:
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)  # Pillow widens the triangle when it shrinks
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return out.getvalue(), rgb.height, rgb.width


def _orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 if there is none; 0 if it is not clear, so that another decoder might find another.

    DALI turns images by their Exif orientation too, and reads it from some damaged headers that Pillow finds empty.
    """
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return 0
    if value is None:
        header = image.info.get("exif", b"")
        return 0 if any(_ORIENTATION.to_bytes(2, order) in header for order in ("big", "little")) else 1
    return value if type(value) is int and 1 <= value <= 8 else 0


def decoded(data: bytes, name: str) -> Image.Image:
    """The pixels of a JPEG from a shard, `jpeg.declared_size` of which the reader has checked.

    Args:
        data: The JPEG.
        name: What to call it in messages.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow says of a damaged JPEG
        raise DataError(f"{name}: cannot be decoded ({_why(error)}); {UNDECODABLE}") from error


UNDECODABLE = "its bytes are those that were indexed, so it was made so: shard the dataset again from its images"


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
