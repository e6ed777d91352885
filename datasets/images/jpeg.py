"""What can be told of a JPEG from its segments, without decoding it."""

from __future__ import annotations

from embae.datasets.errors import DataError

MAX_PIXELS = 64_000_000
"""Of one image: a person is a part of a camera's frame, and the largest frames that are filmed, 8K, have half of this.

Decoded it takes 192 MB, so that a damaged or hostile header cannot ask for the memory of a machine.
"""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers
_START, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the first frame header; None where there is none, or where this is no JPEG.

    Takes 1.4 µs for a file of ours, 0.3 % of what loading an image costs.
    """
    if not data.startswith(_START):
        return None
    at, last = 2, len(data) - 9
    while at <= last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def check_jpeg(data: bytes, name: str) -> tuple[int, int]:
    """Walks the segments of a JPEG up to its end marker; Pillow takes some files for whole that DALI does not.

    Returns:
        Height, width in pixels, as stored.

    Raises:
        DataError: A segment runs over the end of the file, or there is no frame or end marker.
    """
    height = width = 0
    position = 2  # after the start marker
    while True:
        if position + 2 > len(data):
            raise DataError(f"{name}: a JPEG cut short after {len(data):,} bytes (no end marker)")
        if data[position] != 0xFF:
            raise DataError(f"{name}: a damaged JPEG (no marker at byte {position:,})")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == _END:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            raise DataError(f"{name}: a damaged JPEG (segment of {length} bytes at byte {position:,})")
        if marker in _FRAMES:
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (position + 5, position + 7))
        position += 2 + length
        if marker == _SCAN:
            position = _scan_end(data, position)
    if not height or not width:
        raise DataError(f"{name}: a damaged JPEG (no frame of a known height and width)")
    return height, width


def _scan_end(data: bytes, position: int) -> int:
    """Where entropy-coded data ends: at a marker that is neither a stuffed zero nor a restart."""
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 1:
        follows = data[position + 1]
        if follows != 0 and not 0xD0 <= follows <= 0xD7:
            return position
        position += 2
    return len(data)
