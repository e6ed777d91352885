"""What the readers share: finding images, reading their names, and holding a set against its official counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from embae.datasets.errors import DataError
from embae.datasets.index.records import SPLITS, FileImage, Record, Role, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

Counts = Literal["official", "any"]


def locate(root: Path, needed: Sequence[str], official: Sequence[str] = ()) -> Path:
    """`root`, or the folder of an official name inside it, whichever holds all that is needed.

    Raises:
        DataError: Neither does; the message names what is missing.
    """
    for folder in (root, *(root / name for name in official)):
        if all((folder / name).exists() for name in needed):
            return folder
    missing = [name for name in needed if not (root / name).exists()]
    parent = f", or a folder that contains {' or '.join(official)}" if official else ""
    raise DataError(f"{root}: has no {', no '.join(missing)}; wanted the folder with {', '.join(needed)}{parent}")


def listing(folder: Path) -> list[str]:
    """Every image below `folder`, as a path relative to it with ``/``, sorted; no image is opened or looked at.

    Dot files, `Thumbs.db` and whatever else is no image are passed over.

    Raises:
        DataError: There is no such folder, it cannot be listed, or it holds no image.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}")  # os.walk would pass over it silently

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; wanted one of images")
    found: list[str] = []
    base = len(os.path.join(folder, ""))
    for top, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = (name for name in folders if not name.startswith("."))
        prefix = f"{top[base:]}/" if len(top) > base else ""
        found += [prefix + name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no image; wanted {', '.join(SUFFIXES)}")
    return sorted(found)


def matches(
    folder: Path, pattern: re.Pattern[str], wanted: str, remedy: str = "rename them or move them away"
) -> list[tuple[str, re.Match[str]]]:
    """The `listing` of `folder`, with what `pattern` finds in each path.

    Raises:
        DataError: The pattern is not found in some of the paths, or `listing` raises.
    """
    found = [(path, pattern.search(path)) for path in listing(folder)]
    refuse(folder, [path for path, match in found if match is None], f"images are not named {wanted}", remedy)
    return [(path, match) for path, match in found if match is not None]


def refuse(place: Path | str, bad: Sequence[str], what: str, remedy: str) -> None:
    """Raises a DataError that names the first of the bad ones and counts them, if there are any."""
    if bad:
        more = ", …" if len(bad) > 3 else ""
        raise DataError(f"{place}: {what}: {', '.join(bad[:3])}{more} ({len(bad):,} in all); {remedy}")


def contained(root: Path, path: str) -> Path | None:
    """`path`, which a file inside `root` names, relative to `root`, or None if it leads out of `root`.

    Links are not resolved: a folder of links to images kept elsewhere is a usual thing to have.
    """
    base = os.path.abspath(root)
    full = Path(os.path.normpath(os.path.join(base, path)))
    return full.relative_to(base) if full.is_relative_to(base) else None


def record(
    root: Path, path: Path, pid: int | None, camid: int, split: Split = "train", role: Role = "person"
) -> Record:
    """The record of an image file; its key is the path relative to `root`, which `read` makes a WebDataset key."""
    return Record(path.relative_to(root).as_posix(), split, pid, camid, FileImage(path), role)


def tally(records: Iterable[Record]) -> dict[str, int]:
    """Images, identities and cameras, in all and per split; identities are those of persons."""
    records = list(records)
    counts = {"cameras": len({record.camid for record in records})}
    for split in (None, *SPLITS):
        chosen = [record for record in records if split in (None, record.split)]
        name = f"{split} " if split else ""
        counts[f"{name}images"] = len(chosen)
        counts[f"{name}identities"] = len({record.pid for record in chosen if record.role == "person"})
        for role in ("distractor", "junk"):
            counts[f"{name}{role} images"] = sum(record.role == role for record in chosen)
    return counts


def check(root: Path, records: list[Record], expected: Mapping[str, int], counts: Counts) -> list[Record]:
    """The records, once their `tally` agrees with the official one (`counts=any` does not ask).

    Raises:
        DataError: It does not; the message names what was found, what was expected and the remedy.
    """
    if counts == "any":
        return records
    found = tally(records)
    wrong = [
        f"{name} {found[name]:,} (expected {number:,})" for name, number in expected.items() if found[name] != number
    ]
    if wrong:
        raise DataError(
            f"{root}: not the official set: found {', '.join(wrong)}; "
            f"complete it from the official source, or counts=any takes it as it is"
        )
    return records
