"""A picture of what was found: a query and its ranked list, side by side, a row each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_bytes

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
        head: Above it; of a match, its distance.
        lines: Below it, two at most.
        same: Whether it is the query's identity; None where that is not known, or of the query itself.
    """

    image: Image.Image
    head: str
    lines: Sequence[str]
    same: bool | None = None


def size(rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the picture of that many queries, with that many matches at most, in pixels."""
    across = 2 * _MARGIN + (columns + 1) * (CELL[1] + _GAP) + _APART
    return max(across, 520), 2 * _MARGIN + _TITLE + rows * (_HEAD + CELL[0] + _FOOT) + (rows - 1) * _ROWS


def draw(title: str, subtitle: str, rows: Sequence[tuple[Shown, Sequence[Shown]]], path: Path) -> None:
    """Writes the picture.

    Args:
        title: What it is.
        subtitle: A line below that.
        rows: Each query and its matches, nearest first.
        path: The PNG, written whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    sheet = Image.new("RGB", size(len(rows), max(len(matches) for _, matches in rows)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, ImageFont.load_default(21))
    pen.text((_MARGIN, _MARGIN + 24), subtitle, _FAINT, ImageFont.load_default(13))
    if any(match.same is not None for _, matches in rows for match in matches):
        _legend(pen, sheet.width)
    for number, (query, matches) in enumerate(rows):
        top = _MARGIN + _TITLE + number * (_HEAD + CELL[0] + _FOOT + _ROWS)
        _put(sheet, pen, query, _MARGIN, top, _INK)
        line = _MARGIN + CELL[1] + _GAP + (_APART - _GAP) // 2
        pen.line((line, top + _HEAD, line, top + _HEAD + CELL[0]), "#dedcd6", 2)
        for place, match in enumerate(matches):
            left = _MARGIN + CELL[1] + _GAP + _APART + place * (CELL[1] + _GAP)
            _put(sheet, pen, match, left, top, _FRAME[match.same], str(place + 1))
            if match.same is False:
                _dash(pen, (left, top + _HEAD, left + CELL[1], top + _HEAD + CELL[0]), _THICK, _DASH, _GAPS)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, out.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); give another file") from error


def _put(sheet: Image.Image, pen: ImageDraw.ImageDraw, shown: Shown, left: int, top: int, frame: str,
         rank: str = "") -> None:
    bold, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pen.text((left, top + _HEAD // 2 - 2), rank, _INK, bold, anchor="lm")
    at, anchor, colour = (left + CELL[1], "rm", _FAINT) if rank else (left, "lm", _INK)
    pen.text((at, top + _HEAD // 2 - 2), shown.head, colour, small if rank else bold, anchor=anchor)
    box = (left, top + _HEAD, left + CELL[1], top + _HEAD + CELL[0])
    pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), "#ecebe6", frame, _THICK)
    room = CELL[0] - 2 * _THICK, CELL[1] - 2 * _THICK
    scale = min(room[0] / shown.image.height, room[1] / shown.image.width)
    wanted = max(1, round(shown.image.width * scale)), max(1, round(shown.image.height * scale))
    picture = shown.image.convert("RGB").resize(wanted, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (CELL[1] - wanted[0]) // 2, box[1] + (CELL[0] - wanted[1]) // 2))
    for number, line in enumerate(shown.lines[:2]):
        pen.text((left, box[3] + 11 + 15 * number), _fitting(pen, line, small), _FAINT, small, anchor="lm")


def _dash(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], thick: int, dash: int, gap: int) -> None:
    """Makes a frame a dashed one, which whoever cannot tell its colour sees too."""
    left, top, right, bottom = box
    for x in range(left + dash, right - dash // 2, dash + gap):
        for y in (top, bottom - thick):
            pen.rectangle((x, y, min(x + gap, right) - 1, y + thick - 1), _PAPER)
    for y in range(top + dash, bottom - dash // 2, dash + gap):
        for x in (left, right - thick):
            pen.rectangle((x, y, x + thick - 1, min(y + gap, bottom) - 1), _PAPER)


def _fitting(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text as wide as an image at most, cut at its beginning: keys end in what tells them apart."""
    if pen.textlength(text, font) <= CELL[1]:
        return text
    while len(text) > 1 and pen.textlength(f"…{text}", font) > CELL[1]:
        text = text[1:]
    return f"…{text}"


def _legend(pen: ImageDraw.ImageDraw, width: int) -> None:
    font, right = ImageFont.load_default(13), width - _MARGIN
    for said, same in (("not known", None), ("someone else", False), ("same person", True)):
        right -= int(pen.textlength(said, font))
        pen.text((right, _MARGIN + 32), said, _FAINT, font, anchor="lm")
        right -= 18
        pen.rectangle((right, _MARGIN + 26, right + 11, _MARGIN + 37), None, _FRAME[same], 3)
        if same is False:
            _dash(pen, (right, _MARGIN + 26, right + 12, _MARGIN + 38), 3, 4, 3)
        right -= 16
