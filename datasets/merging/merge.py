"""Writes a merged set: one name over several datasets, none of which is copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import atomic_folder, write_text
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import MERGED, NAME
from embae.datasets.index.records import ROLES

if TYPE_CHECKING:
    from embae.datasets.merging.duplicates import Duplicates
from embae.datasets.index.merged import DUPLICATES, Merged, check_distinct, is_merged
from embae.datasets.index.merged_card import WEIGHT_RANGE, Member, format_card, is_weight, read_members


def merge(folders: Sequence[Path], out: Path, weights: Mapping[str, float], *,
          duplicates: bool = True) -> tuple[Merged, Duplicates | None]:
    """Writes a merged set; where `out` is one already, in place of it.

    Args:
        folders: The datasets, in the order that numbers them.
        out: The merged set's folder.
        weights: By dataset name, a positive number for each or none at all.
        duplicates: Whether to look for images that two of them have in common, which decodes all images.

    Returns:
        The merged set, and the duplicates that were looked for.

    Raises:
        DataError: Fewer than two datasets, one of them twice or merged itself, two of one name, a weight of no dataset
            or not for all of them, or a folder that holds something else.
    """
    if len(folders) < 2:
        raise DataError(f"found {len(folders)} dataset{'s' * (len(folders) != 1)} to merge; expected at least two")
    if not NAME.fullmatch(out.name):
        raise DataError(f"{out}: expected a folder named by up to 100 letters, digits, '_' and '-': recipes name it so")
    for folder in folders:
        if is_merged(folder):
            raise DataError(f"{folder} is a merged set itself; name its members, which stay apart as they are: "
                            f"{', '.join(member.path for member in read_members(folder / MERGED))} (from there)")
    indexes = [Index.open(folder) for folder in folders]
    check_distinct(indexes)
    home = Path(os.path.realpath(out))
    if home.exists() and (not home.is_dir() or {path.name for path in home.iterdir()} - {MERGED, DUPLICATES}):
        raise DataError(f"{out} exists and holds other things than a merged set; give another name (--out), or remove "
                        "it first")
    if unknown := [name for name in weights if name not in {index.name for index in indexes}]:
        raise DataError(f"--weight {unknown[0]}: is none of the datasets {', '.join(index.name for index in indexes)}")
    if without := [index.name for index in indexes if weights and index.name not in weights]:
        raise DataError(f"--weight: {', '.join(without)} has none; give every dataset a weight, or none at all, and "
                        "they take turns in proportion to their images")
    for name, weight in weights.items():
        if not is_weight(weight):
            raise DataError(f"--weight {name}={weight}: expected {WEIGHT_RANGE}")
    members = tuple(_described(index, home, weights.get(index.name)) for index in indexes)
    duplicates_found = None
    if duplicates:
        from embae.datasets.merging.duplicates import find_duplicates  # not for a run, which opens merged sets
        duplicates_found = find_duplicates(indexes)
    try:
        with atomic_folder(home) as folder:
            write_text(folder / MERGED, format_card(members))
            if duplicates_found:
                duplicates_found.write(folder / DUPLICATES)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); give another folder (--out)") from error
    return Merged.open(out), duplicates_found


def _described(index: Index, home: Path, weight: float | None) -> Member:
    """A member's line of the card, with its counts, so that a reader need not open it."""
    persons = index.pid[index.labelled & (index.role == ROLES.index("person"))]
    # A link that is the dataset itself stays: it is the user's name for the place.
    root = Path(str(index.root))
    place = os.path.join(os.path.realpath(root.parent), root.name)
    path = Path(os.path.relpath(place, home)).as_posix()
    return Member(index.name, path, index.fingerprint, len(index), len(np.unique(persons)), len(np.unique(index.camid)),
                  weight)
