"""CUHK01: 971 people, 2 cameras, 2 images of each in both (Li et al., ACCV 2012).

campus/0001001.png      person (4 digits), image (3 digits): 001-002 camera A, 003-004 camera B
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from embae.datasets.index.records import Record
from embae.datasets.readers.halves import divide
from embae.datasets.readers.image_files import Counts, check, matches, record

COUNTS = {"images": 3_884, "identities": 971, "cameras": 2}


def records(root: Path, *, split: Literal["485", "871", "all"] = "485", counts: Counts = "official") -> list[Record]:
    """CUHK01; camera A is 1 and holds the queries, camera B is 2 and holds the gallery.

    Args:
        root: `campus`, or the folder that contains it.
        split: How many identities train: the two usual numbers (testing on 486 or 100), or all of them, for a set that
            is only a source. Published splits are random draws; here those with the lowest pids train.
        counts: ``official`` refuses a set that is not complete, ``any`` takes it as it is.
    """
    home = root / "campus" if (root / "campus").is_dir() else root
    found = [
        record(home, home / path, int(match[1]), 1 if match[2] in "12" else 2)
        for path, match in matches(home, re.compile(r"^(\d{4})00([1-4])\.\w+$"), "PPPPIII.png, image 001 to 004")
    ]
    if split != "all":
        train = sorted({one.pid for one in found if one.pid is not None})[: int(split)]
        found = divide(found, set(train), query_cameras={1})
    return check(root, found, COUNTS, counts)
