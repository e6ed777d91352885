"""Labels in anyone's own notation: a pattern for paths, and numbers for names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.readers.image_files import refuse
from embae.datasets.readers.options import did_you_mean


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with the named groups `pid`, `camid` or both.

    Raises:
        DataError: It is no regular expression, has neither group, or has another named group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"pattern={pattern}: not a regular expression: {error}") from None
    for name in compiled.groupindex:
        if name not in ("pid", "camid"):
            raise DataError(f"pattern={pattern}: unknown group {name!r}{did_you_mean(name, ('pid', 'camid'))}")
    if not compiled.groupindex:
        raise DataError(f"pattern={pattern}: wanted a named group, (?P<pid>…) or (?P<camid>…) or both")
    return compiled


def numbered(values: Iterable[str | None]) -> dict[str, int]:
    """What number each label stands for.

    If all labels are whole numbers, each is its own number (0007 is 7); otherwise they are numbered from 0 in sorted
    order, which is the same for the same labels whatever the order of the files.
    """
    labels = sorted({value for value in values if value is not None})
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):  # 18 digits fit the index's int64
        return {label: int(label) for label in labels}
    return numbered_names(labels)


def numbered_names(values: Iterable[str]) -> dict[str, int]:
    """What number each name stands for, from 0 in sorted order, whole numbers too."""
    return {value: number for number, value in enumerate(sorted(set(values)))}


def cameras(place: Path, names: Sequence[str], values: Sequence[str | None]) -> list[tuple[int, str | None]]:
    """Number and label of each image's camera: 0 for all where none has a label, else as `numbered` says.

    Raises:
        DataError: Some have a label and some have none: camera 0 for those might be a camera of its own.
    """
    numbers = numbered(values)
    if not numbers:
        return [(0, None)] * len(values)
    bad = [name for name, value in zip(names, values, strict=True) if value is None]
    refuse(place, bad, "images have no camid while others have one", "give every image one, or none "
           "(where folders are cameras, move these into one)")
    both = {label: (number, label) for label, number in numbers.items()}  # millions of images share a label
    return [both[value] for value in values if value is not None]
