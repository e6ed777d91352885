"""Labels in a user's own notation: a pattern that takes them from paths, and the numbers that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.readers.image_files import refuse
from embae.datasets.readers.options import choose_from


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with the named groups `pid`, `camid` or both.

    Raises:
        DataError: It is not a regular expression, has neither group, or has another named group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"pattern={pattern}: not a regular expression: {error}") from None
    for name in compiled.groupindex:
        if name not in ("pid", "camid"):
            raise DataError(f"pattern={pattern}: unknown group {name!r}{choose_from(name, ('pid', 'camid'))}")
    if not compiled.groupindex:
        raise DataError(f"pattern={pattern}: found no named group; expected (?P<pid>…) or (?P<camid>…) or both")
    return compiled


def number_labels(values: Iterable[str | None]) -> dict[str, int]:
    """The number that stands for each label.

    If all labels are whole numbers, each stands for itself (0007 is 7); otherwise they are numbered from 0 in sorted
    order, so that the same labels get the same numbers whatever the order of the files.
    """
    labels = sorted({value for value in values if value is not None})
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):  # 18 digits fit the index's int64
        return {label: int(label) for label in labels}
    return number_names(labels)


def number_names(values: Iterable[str]) -> dict[str, int]:
    """The number that stands for each name, from 0 in sorted order, even where names are whole numbers."""
    return {value: number for number, value in enumerate(sorted(set(values)))}


def number_cameras(place: Path, names: Sequence[str], values: Sequence[str | None]) -> list[tuple[int, str | None]]:
    """Number and label of each image's camera: 0 for all images if none has a label, else as in `number_labels`.

    Args:
        place: The folder or file that the labels come from, for messages.
        names: Of the images.
        values: Each image's camera label, or None.

    Raises:
        DataError: Some images have a label and some have none: camera 0 for those might be one of the labelled cameras.
    """
    numbers = number_labels(values)
    if not numbers:
        return [(0, None)] * len(values)
    unlabelled = [name for name, value in zip(names, values, strict=True) if value is None]
    refuse(place, unlabelled, "images have no camid while others have one", "give every image one, or none "
           "(where folders are cameras, move these into one)")
    cameras = {label: (number, label) for label, number in numbers.items()}  # one tuple for millions of images
    return [cameras[value] for value in values if value is not None]
