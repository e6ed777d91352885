"""What may enter a shard: whole images, made RGB JPEG."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.images.encoding import MAX_PIXELS, check_jpeg, prepare


def scene(mode: str = "RGB", height: int = 96, width: int = 48) -> Image.Image:
    """Smooth colours, so that JPEG loses little; top and bottom, left and right differ."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    return Image.fromarray((255 * np.stack([y, x, (1 - y) * x], -1)).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image).astype(int)


def subsampling(data: bytes) -> tuple[tuple[int, int, int], ...]:
    return tuple(Image.open(io.BytesIO(data)).layer)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"restart_marker_rows": 1}])
def test_rgb_jpeg_passes_through_byte_for_byte(options: dict[str, object]) -> None:
    data = encode(scene(), "JPEG", **options)
    assert prepare(data, "x") == (data, 96, 48)
    assert prepare(data, "x", (96, 48)) == (data, 96, 48)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("BMP", "RGB"),
     ("JPEG", "L"), ("JPEG", "CMYK"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PPM", "RGB")],
)  # fmt: skip
def test_everything_else_becomes_an_rgb_jpeg(kind: str, mode: str) -> None:
    image = scene(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    data, height, width = prepare(encode(image, kind, **options), "x")
    assert (height, width) == (96, 48)
    found, wanted = Image.open(io.BytesIO(data)), image.convert("RGB")
    if mode in ("P", "1"):  # of dithered colours only the mean survives
        found, wanted = found.reduce(4), wanted.reduce(4)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted).astype(int)).mean() < 3
    assert [layer[1:3] for layer in subsampling(data)] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    check_jpeg(data, "x")


def test_transparency_is_dropped() -> None:
    image = scene("RGBA")
    image.putalpha(0)
    assert np.abs(pixels(prepare(encode(image, "PNG"), "x")[0]) - np.asarray(scene()).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_rotated_image_is_turned_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # seen after a quarter turn clockwise
    lying = scene().transpose(Image.Transpose.ROTATE_90)
    data, height, width = prepare(encode(lying, kind, exif=exif), "x")
    assert (height, width) == (96, 48)
    assert np.abs(pixels(data) - np.asarray(scene()).astype(int)).mean() < 4
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1
    assert prepare(encode(lying, kind, exif=exif), "x", (24, 12))[1:] == (24, 12)


def test_an_orientation_that_changes_nothing_passes_through() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encode(scene(), "JPEG", exif=exif)
    assert prepare(data, "x")[0] == data


def test_resizing_averages_what_it_shrinks() -> None:
    # Columns of black and white, one pixel each: without antialiasing a multiple of them would come out.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    data, height, width = prepare(encode(Image.fromarray(stripes), "PNG"), "x", (16, 8))
    assert (height, width) == (16, 8)
    assert np.abs(pixels(data) - 127).max() <= 6
    # And a step stays where it was (half-pixel centres).
    step = np.zeros((64, 64, 3), np.uint8)
    step[:, 32:] = 255
    found = pixels(prepare(encode(Image.fromarray(step), "PNG"), "x", (32, 16))[0])[16, :, 0]
    assert (found[:7] < 20).all() and (found[9:] > 235).all() and abs(found[7] + found[8] - 255) <= 12


def test_enlarges() -> None:
    data, height, width = prepare(encode(scene(), "JPEG"), "x", (288, 144))
    assert (height, width) == (288, 144) == check_jpeg(data, "x")
    assert np.abs(pixels(data) - np.asarray(scene(height=288, width=144)).astype(int)).mean() < 4


def png_of(height: int, width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"pid,camid\n1,2\n", "not an image of a known kind"),
        (b"\xff\xd8", "not an image of a known kind"),
        (EPS, "not an image of a known kind"),
        (png_of(9000, 9000), "declares 9000 × 9000 pixels, expected at most 64,000,000"),
        (png_of(12_000, 10_000), "expected at most 64,000,000"),
        (png_of(60_000, 60_000), "expected at most 64,000,000 pixels"),
        (encode(scene(), "PNG")[:-400], "damaged or cut short"),
        (encode(scene(), "JPEG")[:-2], "no end marker"),
        (encode(scene("I"), "TIFF"), "mode I"),
    ],
    ids=["empty", "text", "two bytes", "eps", "bomb", "warned bomb", "refused bomb", "png", "jpeg", "32 bit"],
)  # fmt: skip
def test_bad_images_are_refused_by_name(data: bytes, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(DataError, match=f"^cam1/0042.jpg: .*{message}"):
        prepare(data, "cam1/0042.jpg")
    assert time.perf_counter() - start < 1  # no bomb was decoded


def test_the_largest_image_that_is_taken() -> None:
    assert MAX_PIXELS == 8000 * 8000
    with pytest.raises(DataError, match="damaged or cut short"):  # its size was accepted
        prepare(png_of(8000, 8000), "x")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_cut_anywhere_is_refused(options: dict[str, object]) -> None:
    data = encode(scene(), "JPEG", **options)
    for length in range(1, len(data), 7):
        with pytest.raises(DataError, match=r"^x: "):
            prepare(data[:length], "x")


@pytest.mark.parametrize("damage", [(0, b"XX"), (4, b"\xff\xff\xff\xff"), (12, b"\x00\x07"), (18, b"\x00\x00")])
def test_damaged_metadata_is_stored_without_it(damage: tuple[int, bytes]) -> None:
    """DALI may still find the quarter turn that Pillow does not, so such a file is not passed through."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(scene(), "JPEG", exif=exif))
    position = data.index(b"Exif\0\0") + 6 + damage[0]
    data[position : position + len(damage[1])] = damage[1]
    stored, height, width = prepare(bytes(data), "x")
    assert b"Exif" not in stored
    assert pixels(stored).shape == (height, width, 3)


def test_metadata_without_an_orientation_pass_through() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = encode(scene(), "JPEG", exif=exif)
    assert prepare(data, "x")[0] == data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}])
def test_what_is_passed_through_is_checked_as_well_as_if_all_of_it_were_decoded(options: dict[str, object]) -> None:
    """Only an eighth of the pixels are made of it: that finds whatever making all of them does."""
    data, draw = encode(scene(), "JPEG", **options), np.random.default_rng(0)
    refused = accepted = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in draw.integers(2, len(data) - 2, draw.integers(1, 4)):
            damaged[position] = draw.integers(0, 256)
        try:
            check_jpeg(bytes(damaged), "x")
            with Image.open(io.BytesIO(damaged), formats=["JPEG"]) as image:
                if image.mode != "RGB":
                    continue
                image.load()
        except Exception:
            refused += 1
            with pytest.raises(DataError):
                prepare(bytes(damaged), "x")
        else:
            accepted += 1
            prepare(bytes(damaged), "x")
    assert refused > 20 and accepted > 20
