"""CUHK01: 971 people, 2 cameras, 2 images of each in both (Li et al., ACCV 2012).

campus/0001001.png      person (4 digits), image (3 digits): 001-002 camera A, 003-004 camera B
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from embae.datasets.index.records import Record
from embae.datasets.readers.identity_splits import assign_splits
from embae.datasets.readers.image_files import file_record, match_images
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

COUNTS = {"images": 3_884, "identities": 971, "cameras": 2}


def list_records(
    root: Path, *, split: Literal["485", "871", "all"] = "485", counts: Counts = "official"
) -> list[Record]:
    """CUHK01; camera A is 1 and has the queries, camera B is 2 and has the gallery.

    Args:
        root: `campus`, or the folder that contains it.
        split: How many identities train: one of the two usual numbers (testing on 486 or 100), or all of them, for a
            dataset that is only a source. Published splits are random draws; here those with the lowest pids train.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    home = root / "campus" if (root / "campus").is_dir() else root
    records = [
        file_record(home, home / path, int(match[1]), 1 if match[2] in "12" else 2)
        for path, match in match_images(home, re.compile(r"^(\d{4})00([1-4])\.\w+$"), "PPPPIII.png, image 001 to 004")
    ]
    if split != "all":
        train = sorted({record.pid for record in records if record.pid is not None})[: int(split)]
        records = assign_splits(records, set(train), query_cameras={1})
    return check_counts(root, records, COUNTS, counts)


READER = Reader("cuhk01", "CUHK01: 485 or 871 people train", list_records)
