"""A picture of a few identities of a dataset, to look at before training on it."""

from __future__ import annotations

import io
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_bytes
from embae.datasets.images.encoding import decode_jpeg
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.shard_reader import ShardReader, describe_row

_CELL = (176, 88)  # height, width of an image on the sheet, at most
_GAP, _MARGIN, _LABEL, _CAPTION, _TITLE = 10, 24, 96, 18, 40
_PAPER, _INK, _FAINT = "#faf9f6", "#22252a", "#7a7f87"
_COLOURS = {"train": "#3b7dd8", "query": "#d8663b", "gallery": "#4a9a5b"}


def contact_sheet(index: Index, path: Path, seed: int = 0, identities: int = 8, per_identity: int = 8) -> None:
    """Draws a grid, a row an identity (a camera, where nothing is labelled), its images spread over the cameras.

    Args:
        index: The dataset.
        path: The PNG to write, under a temporary name and then renamed.
        seed: Chooses the identities and images.
        identities: Rows, at most.
        per_identity: Images in a row, at most.

    Raises:
        DataError: An image does not match its checksum, or the numbers leave nothing to draw.
    """
    if identities < 1 or per_identity < 1:
        raise DataError(f"contact sheet of {identities} × {per_identity} images: expected at least one row and column")
    rng = np.random.default_rng(seed)
    rows = _choose(index, rng, identities, per_identity)
    sheet = _draw(index, rows)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        write_bytes(path, out.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); give another file") from error


def _choose(index: Index, rng: np.random.Generator, most: int, images: int) -> list[tuple[str, list[int]]]:
    """Label and rows of the index, for each row of the sheet."""
    rows = np.flatnonzero(index.labelled & (index.role == ROLES.index("person")))
    group_of_row, name = index.pid[rows].astype(np.int64), "pid"
    if not len(rows):
        rows, group_of_row, name = np.arange(len(index)), index.camid.astype(np.int64), "camera"
    groups = np.unique(group_of_row)
    chosen = np.sort(rng.choice(groups, size=min(most, len(groups)), replace=False))
    return [(f"{name} {group}", _spread(index, rng, rows[group_of_row == group], images)) for group in chosen]


def _spread(index: Index, rng: np.random.Generator, rows: npt.NDArray[np.int64], most: int) -> list[int]:
    """Some of the rows, taken from their cameras in turn, sorted by camera and split."""
    rows = rng.permutation(rows)
    cameras = [rows[index.camid[rows] == camid] for camid in np.unique(index.camid[rows])]
    turns = [int(row) for turn in zip_longest(*cameras) for row in turn if row is not None]
    return sorted(turns[:most], key=lambda row: (index.camid[row], index.split[row], row))


def _draw(index: Index, rows: list[tuple[str, list[int]]]) -> Image.Image:
    columns = max(len(images) for _, images in rows)
    height = _TITLE + len(rows) * (_CELL[0] + _CAPTION + _GAP) + 2 * _MARGIN - _GAP
    width = _LABEL + columns * (_CELL[1] + _GAP) + 2 * _MARGIN - _GAP
    sheet = Image.new("RGB", (max(width, 480), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), index.name, _INK, ImageFont.load_default(20))
    _legend(draw, sheet.width)
    bold, small = ImageFont.load_default(15), ImageFont.load_default(12)
    with ShardReader(index) as reader:
        for number, (label, images) in enumerate(rows):
            top = _MARGIN + _TITLE + number * (_CELL[0] + _CAPTION + _GAP)
            draw.text((_MARGIN, top + _CELL[0] // 2), label, _INK, bold, anchor="lm")
            for column, row in enumerate(images):
                left = _MARGIN + _LABEL + column * (_CELL[1] + _GAP)
                picture = decode_jpeg(reader.read(row), describe_row(index, row))
                scale = min(_CELL[0] / picture.height, _CELL[1] / picture.width)
                size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                picture = picture.resize(size, Image.Resampling.LANCZOS)
                sheet.paste(picture, (left + (_CELL[1] - size[0]) // 2, top + (_CELL[0] - size[1]) // 2))
                split = SPLITS[index.split[row]]
                middle = top + _CELL[0] + _CAPTION // 2
                draw.ellipse((left, middle - 4, left + 8, middle + 4), fill=_COLOURS[split])
                draw.text((left + 13, middle), f"camera {index.camid[row]}", _FAINT, small, anchor="lm")
    return sheet


def _legend(draw: ImageDraw.ImageDraw, width: int) -> None:
    font = ImageFont.load_default(13)
    right = width - _MARGIN
    for split in reversed(SPLITS):
        right -= int(draw.textlength(split, font)) + 14
        draw.ellipse((right, _MARGIN + 3, right + 9, _MARGIN + 12), fill=_COLOURS[split])
        draw.text((right + 14, _MARGIN + 8), split, _FAINT, font, anchor="lm")
        right -= 16
