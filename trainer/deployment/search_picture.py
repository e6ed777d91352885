"""A picture of a search: a row for each query, with its ranked list beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_bytes
from embae.trainer.deployment.search_results import Matches, camera_label
from embae.trainer.retrieval.ranking_options import RankingOptions

if TYPE_CHECKING:
    from embae.trainer.deployment.gallery import Gallery

CELL = (208, 108)  # height, width of an image with its frame: people are twice as high as wide
_GAP, _MARGIN, _TITLE, _HEAD, _FOOT, _APART, _ROWS = 14, 28, 54, 24, 36, 30, 22
_PAPER, _INK, _FAINT = "#faf9f6", "#22252a", "#7a7f87"
_FRAME = {True: "#007f5f", False: "#d1483f", None: "#b9bdc4"}
_THICK, _DASH, _GAPS = 4, 11, 6


@dataclass(frozen=True)
class Shown:
    """An image of the picture.

    Attributes:
        image: Its pixels.
        head: Text above it; for a match, its distance.
        lines: Text below it, two lines at most.
        same: Whether it has the query's identity; None if that is not known, and for the query itself.
    """

    image: Image.Image
    head: str
    lines: Sequence[str]
    same: bool | None = None


def size(rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the picture of that many queries, with that many matches at most, in pixels."""
    across = 2 * _MARGIN + (columns + 1) * (CELL[1] + _GAP) + _APART
    return max(across, 520), 2 * _MARGIN + _TITLE + rows * (_HEAD + CELL[0] + _FOOT) + (rows - 1) * _ROWS


def draw_results(path: Path, results: Sequence[Matches], tree: dict[str, Any], gallery: Gallery) -> None:
    """Draws the results of a search.

    Args:
        path: The PNG.
        results: Each query and its matches.
        tree: What `results_tree` makes of them.
        gallery: The gallery.

    Raises:
        DataError: An image cannot be read, or the picture cannot be written.
    """
    several_datasets = len(gallery.vectors.datasets) > 1
    rows = []
    for matches, query in zip(results, tree["queries"], strict=True):
        lines = [", ".join(_camera_and_pid(query)), os.path.basename(query["query"])]
        shown = [Shown(gallery.read_image(match["dataset"], int(gallery.vectors.row[image])),
                       f"{match['distance']:.3f}",
                       [", ".join(_camera_and_pid({**match, "camera": camera_label(match, several_datasets)})),
                        match["key"]], match["same"])
                 for match, image in zip(query["matches"], matches.images, strict=True)]
        rows.append((Shown(matches.query.image, "query", [line for line in lines if line]), shown))
    subtitle = ["each with its rank and its distance from the query", RankingOptions.of(tree).label]
    draw(f"Nearest of {tree['images']:,} images of {tree['gallery']}", ", ".join(filter(None, subtitle)), rows, path)


def _camera_and_pid(labels: dict[str, Any]) -> list[str]:
    """What is known of an image: its camera, its identity."""
    return [f"{name} {labels[key]}" for name, key in (("camera", "camera"), ("pid", "pid")) if labels[key] is not None]


def draw(title: str, subtitle: str, rows: Sequence[tuple[Shown, Sequence[Shown]]], path: Path) -> None:
    """Writes the picture.

    Args:
        title: The title.
        subtitle: A line below the title.
        rows: Each query and its matches, nearest first.
        path: The PNG, written whole or not at all.

    Raises:
        DataError: The picture cannot be written.
    """
    sheet = Image.new("RGB", size(len(rows), max(len(matches) for _, matches in rows)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, ImageFont.load_default(21))
    pen.text((_MARGIN, _MARGIN + 24), subtitle, _FAINT, ImageFont.load_default(13))
    if any(match.same is not None for _, matches in rows for match in matches):
        _legend(pen, sheet.width)
    for number, (query, matches) in enumerate(rows):
        top = _MARGIN + _TITLE + number * (_HEAD + CELL[0] + _FOOT + _ROWS)
        _paste(sheet, query, (_MARGIN, top), _INK)
        line = _MARGIN + CELL[1] + _GAP + (_APART - _GAP) // 2
        pen.line((line, top + _HEAD, line, top + _HEAD + CELL[0]), "#dedcd6", 2)
        for place, match in enumerate(matches):
            left = _MARGIN + CELL[1] + _GAP + _APART + place * (CELL[1] + _GAP)
            _paste(sheet, match, (left, top), _FRAME[match.same], str(place + 1))
            if match.same is False:
                _dash(pen, (left, top + _HEAD, left + CELL[1], top + _HEAD + CELL[0]), _THICK, _DASH, _GAPS)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, out.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); give another file") from error


def _paste(sheet: Image.Image, shown: Shown, corner: tuple[int, int], frame: str, rank: str = "") -> None:
    """Puts an image with its texts and its frame on the sheet; `corner` is the upper left one, (x, y)."""
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    bold, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pen.text((left, top + _HEAD // 2 - 2), rank, _INK, bold, anchor="lm")
    at, anchor, colour = (left + CELL[1], "rm", _FAINT) if rank else (left, "lm", _INK)
    pen.text((at, top + _HEAD // 2 - 2), shown.head, colour, small if rank else bold, anchor=anchor)
    box = (left, top + _HEAD, left + CELL[1], top + _HEAD + CELL[0])
    pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), "#ecebe6", frame, _THICK)
    room = CELL[0] - 2 * _THICK, CELL[1] - 2 * _THICK
    scale = min(room[0] / shown.image.height, room[1] / shown.image.width)
    fitted = max(1, round(shown.image.width * scale)), max(1, round(shown.image.height * scale))
    picture = shown.image.convert("RGB").resize(fitted, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (CELL[1] - fitted[0]) // 2, box[1] + (CELL[0] - fitted[1]) // 2))
    for number, line in enumerate(shown.lines[:2]):
        pen.text((left, box[3] + 11 + 15 * number), _fitting(pen, line, small), _FAINT, small, anchor="lm")


def _dash(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], thick: int, dash: int, gap: int) -> None:
    """Makes a frame a dashed one, which people who cannot see its colour can tell apart too."""
    left, top, right, bottom = box
    for x in range(left + dash, right - dash // 2, dash + gap):
        for y in (top, bottom - thick):
            pen.rectangle((x, y, min(x + gap, right) - 1, y + thick - 1), _PAPER)
    for y in range(top + dash, bottom - dash // 2, dash + gap):
        for x in (left, right - thick):
            pen.rectangle((x, y, x + thick - 1, min(y + gap, bottom) - 1), _PAPER)


def _fitting(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text at most as wide as an image, cut at its beginning: keys differ at their end."""
    if pen.textlength(text, font) <= CELL[1]:
        return text
    while len(text) > 1 and pen.textlength(f"…{text}", font) > CELL[1]:
        text = text[1:]
    return f"…{text}"


def _legend(pen: ImageDraw.ImageDraw, width: int) -> None:
    font, right = ImageFont.load_default(13), width - _MARGIN
    for text, same in (("not known", None), ("someone else", False), ("same person", True)):
        right -= int(pen.textlength(text, font))
        pen.text((right, _MARGIN + 32), text, _FAINT, font, anchor="lm")
        right -= 18
        pen.rectangle((right, _MARGIN + 26, right + 11, _MARGIN + 37), None, _FRAME[same], 3)
        if same is False:
            _dash(pen, (right, _MARGIN + 26, right + 12, _MARGIN + 38), 3, 4, 3)
        right -= 16
