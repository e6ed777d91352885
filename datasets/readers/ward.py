"""WARD: 70 people, 3 cameras (Martinel and Micheloni, CVPR Workshops 2012).

000100010001.png      person, camera, frame (4 digits each), in any folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from embae.datasets.index.records import Record
from embae.datasets.readers import folder
from embae.datasets.readers.identity_splits import assign_splits, draw_half
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

COUNTS = {"identities": 70, "cameras": 3}


def list_records(
    root: Path,
    *,
    pattern: str = r"(?P<pid>\d{4})(?P<camid>\d{4})\d{4}\.\w+$",
    split: Literal["half", "all"] = "half",
    seed: int = 0,
    counts: Counts = "official",
) -> list[Record]:
    """WARD; the lowest camera has the queries, the others have the gallery.

    Args:
        root: The folder of images.
        pattern: Where the path has person and camera. The default is the naming that other projects' readers describe;
            it could not be compared with the original.
        split: ``half`` trains on 35 people and tests on the others; ``all`` trains on everyone.
        seed: Draws the half.
        counts: ``official`` refuses a dataset without 70 people and 3 cameras, ``any`` takes it as it is.
    """
    records = folder.list_records(root, pattern=pattern)
    if split == "half":
        query_cameras = {min(record.camid for record in records)}
        records = assign_splits(records, draw_half(records, seed), query_cameras)
    return check_counts(root, records, COUNTS, counts)


READER = Reader("ward", "WARD: half of the people train", list_records)
