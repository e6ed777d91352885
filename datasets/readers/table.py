"""Anyone's own images, listed in a CSV file.

path,pid,camid,split,role
2024/door/a 17.jpg,anna,door,query,person
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from embae.datasets.errors import DataError
from embae.datasets.index.records import ROLES, SPLITS, Record
from embae.datasets.readers.image_files import contained, record, refuse
from embae.datasets.readers.label_numbers import cameras, numbered
from embae.datasets.readers.options import did_you_mean

COLUMNS = ("path", "pid", "camid", "split", "role")

Choice = TypeVar("Choice")


def records(root: Path) -> list[Record]:
    """The images that the file lists; nothing else in the folder is looked at.

    The column path is taken from the folder of the file and may not leave it. The others may be left out: an image
    without pid is unlabelled, without the column camid all are from camera 0, split is train and role is person.
    Labels that are all whole numbers are taken as they are; otherwise they are numbered from 0 in sorted order.

    Args:
        root: The CSV file, or a folder with a single one.
    """
    listed = root if root.is_file() else _only_table(root)
    home = listed.parent
    rows = _rows(listed)
    names = [row["path"] for row in rows]
    paths = [contained(home, name) for name in names]
    outside = [name for name, path in zip(names, paths, strict=True) if path is None]
    refuse(listed, outside, f"paths lead out of {home}", "move the images or the file")
    inside = [path for path in paths if path is not None]
    missing = [str(path) for path in inside if not (home / path).is_file()]
    refuse(listed, missing, f"images are not in {home}", "mend the column path")
    again = [str(path) for path, count in Counter(inside).items() if count > 1]
    refuse(listed, again, "images are listed more than once", "keep one line of each")
    splits = _choices(listed, rows, "split", SPLITS, "train")
    roles = _choices(listed, rows, "role", ROLES, "person")
    pids = numbered(row["pid"] or None for row in rows)
    camids = cameras(listed, names, [row["camid"] or None for row in rows])
    return [
        replace(record(home, home / path, pids.get(row["pid"]), camid, split, role), camera=camera)
        for path, row, (camid, camera), split, role in zip(inside, rows, camids, splits, roles, strict=True)
    ]


def _rows(listed: Path) -> list[dict[str, str]]:
    """The lines, with every column; what is left out is empty."""
    try:
        with listed.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = list(reader.fieldnames or [])
            lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{listed}: not a CSV file in UTF-8: {error}") from None
    for column in columns:
        if column not in COLUMNS:
            raise DataError(f"{listed}: unknown column {column!r}{did_you_mean(column, COLUMNS)}")
    if "path" not in columns or not lines:
        raise DataError(f"{listed}: lists no image; wanted a first line `path,pid,camid,split,role` and one per image")
    refuse(listed, [line["path"] for line in lines if "" in line], "lines have too many fields", "quote commas")
    return [dict.fromkeys(COLUMNS, "") | line for line in lines]


def _choices(
    listed: Path, rows: list[dict[str, str]], column: str, choices: Sequence[Choice], default: Choice
) -> list[Choice]:
    known = {str(choice): choice for choice in choices} | {"": default}
    bad = [f"{row[column]} ({row['path']})" for row in rows if row[column] not in known]
    refuse(listed, bad, f"lines have an unknown {column}", f"choose from {', '.join(map(str, choices))}")
    return [known[row[column]] for row in rows]


def _only_table(root: Path) -> Path:
    found = sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and not path.name.startswith("."))
    if len(found) != 1:
        raise DataError(f"{root}: holds {len(found)} CSV files, wanted one; or give the file itself as root")
    return found[0]
