"""A user's own images, listed in a CSV file.

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
from embae.datasets.readers.image_files import file_record, path_inside, refuse
from embae.datasets.readers.label_numbers import number_cameras, number_labels
from embae.datasets.readers.options import choose_from
from embae.datasets.readers.reader import Reader

COLUMNS = ("path", "pid", "camid", "split", "role")

Choice = TypeVar("Choice")


def list_records(root: Path) -> list[Record]:
    """The images that the file lists; other files in the folder are ignored.

    Paths are relative to the folder of the file and may not leave it. The other columns are optional: an image without
    pid is unlabelled, without the column camid all are from camera 0, split is train and role is person. Labels that
    are all whole numbers stand for themselves; otherwise they are numbered from 0 in sorted order.

    Args:
        root: The CSV file, or a folder with exactly one.
    """
    table = root if root.is_file() else _find_table(root)
    home = table.parent
    rows = _read_rows(table)
    names = [row["path"] for row in rows]
    resolved = [path_inside(home, name) for name in names]
    outside = [name for name, path in zip(names, resolved, strict=True) if path is None]
    refuse(table, outside, f"paths lead out of {home}", "move the images or the file")
    paths = [path for path in resolved if path is not None]
    missing = [str(path) for path in paths if not (home / path).is_file()]
    refuse(table, missing, f"images are not in {home}", "correct the column path")
    repeated = [str(path) for path, count in Counter(paths).items() if count > 1]
    refuse(table, repeated, "images are listed more than once", "keep one line for each")
    splits = _read_choices(table, rows, "split", SPLITS, "train")
    roles = _read_choices(table, rows, "role", ROLES, "person")
    pids = number_labels(row["pid"] or None for row in rows)
    cameras = number_cameras(table, names, [row["camid"] or None for row in rows])
    return [
        replace(file_record(home, home / path, pids.get(row["pid"]), camid, split, role), camera=camera)
        for path, row, (camid, camera), split, role in zip(paths, rows, cameras, splits, roles, strict=True)
    ]


def _read_rows(table: Path) -> list[dict[str, str]]:
    """The lines, with every column; a missing value is empty."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = list(reader.fieldnames or [])
            lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: not a CSV file in UTF-8: {error}") from None
    for column in columns:
        if column not in COLUMNS:
            raise DataError(f"{table}: unknown column {column!r}{choose_from(column, COLUMNS)}")
    if "path" not in columns or not lines:
        raise DataError(f"{table}: lists no image; expected a first line `path,pid,camid,split,role` and a line for "
                        "each image")
    refuse(table, [line["path"] for line in lines if "" in line], "lines have too many fields", "quote commas")
    return [dict.fromkeys(COLUMNS, "") | line for line in lines]


def _read_choices(
    table: Path, rows: list[dict[str, str]], column: str, choices: Sequence[Choice], default: Choice
) -> list[Choice]:
    by_text = {str(choice): choice for choice in choices} | {"": default}
    bad = [f"{row[column]} ({row['path']})" for row in rows if row[column] not in by_text]
    refuse(table, bad, f"lines have an unknown {column}", f"choose from {', '.join(map(str, choices))}")
    return [by_text[row[column]] for row in rows]


def _find_table(root: Path) -> Path:
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and not path.name.startswith("."))
    if len(tables) != 1:
        raise DataError(f"{root}: found {len(tables)} CSV files, expected one; or give the file itself as root")
    return tables[0]


READER = Reader("csv", "your images, listed in a CSV file", list_records)
