"""Image files of a dataset: finds them in folders, reads their names, and makes records of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import FileImage, Record, Role, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def find_folder(root: Path, contents: Sequence[str], official: Sequence[str] = ()) -> Path:
    """The first of `root` and the folders of an official name inside it that contains everything in `contents`.

    Raises:
        DataError: None of them does; the message names what is missing.
    """
    for folder in (root, *(root / name for name in official)):
        if all((folder / name).exists() for name in contents):
            return folder
    missing = [name for name in contents if not (root / name).exists()]
    parent = f", or a folder that contains {' or '.join(official)}" if official else ""
    raise DataError(f"{root}: has no {', no '.join(missing)}; expected the folder with {', '.join(contents)}{parent}")


def list_images(folder: Path) -> list[str]:
    """Every image below `folder`, as a path relative to it with ``/``, sorted; no image is opened.

    Dot files, `Thumbs.db` and all other files that are not images are skipped.

    Raises:
        DataError: The folder does not exist, cannot be listed, or contains no image.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}")  # os.walk would skip it silently

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a folder of images")
    paths: list[str] = []
    base = len(os.path.join(folder, ""))
    for top, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = (name for name in folders if not name.startswith("."))
        prefix = f"{top[base:]}/" if len(top) > base else ""
        paths += [prefix + name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not paths:
        raise DataError(f"{folder}: contains no image; expected {', '.join(SUFFIXES)}")
    return sorted(paths)


def match_images(
    folder: Path, pattern: re.Pattern[str], expected: str, remedy: str = "rename them or move them away"
) -> list[tuple[str, re.Match[str]]]:
    """The `list_images` of `folder`, each with the match of `pattern` in its path.

    Args:
        folder: Of images.
        pattern: Searched for in each relative path.
        expected: How images are named, for the message.
        remedy: What to do about images that are not named so, for the message.

    Raises:
        DataError: Some paths do not match, or `list_images` raises.
    """
    searched = [(path, pattern.search(path)) for path in list_images(folder)]
    refuse(folder, [path for path, match in searched if match is None], f"images are not named {expected}", remedy)
    return [(path, match) for path, match in searched if match is not None]


def refuse(place: Path | str, bad: Sequence[str], problem: str, remedy: str) -> None:
    """Raises a DataError that names the first of the bad entries and counts them, if there are any."""
    if bad:
        more = ", …" if len(bad) > 3 else ""
        raise DataError(f"{place}: {problem}: {', '.join(bad[:3])}{more} ({len(bad):,} in all); {remedy}")


def path_inside(root: Path, path: str) -> Path | None:
    """`path`, which a file inside `root` names, relative to `root`, or None if it leads out of `root`.

    Links are not resolved: users often have folders of links to images that are stored elsewhere.
    """
    base = os.path.abspath(root)
    full = Path(os.path.normpath(os.path.join(base, path)))
    return full.relative_to(base) if full.is_relative_to(base) else None


def file_record(
    root: Path, path: Path, pid: int | None, camid: int, split: Split = "train", role: Role = "person"
) -> Record:
    """The record of an image file; its key is the path relative to `root`, which `read_records` makes WebDataset's."""
    return Record(path.relative_to(root).as_posix(), split, pid, camid, FileImage(path), role)
