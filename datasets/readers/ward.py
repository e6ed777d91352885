"""WARD: 70 people, 3 cameras (Martinel and Micheloni, CVPR Workshops 2012).

000100010001.png      person, camera, frame (4 digits each), in any folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from embae.datasets.index.records import Record
from embae.datasets.readers import folder
from embae.datasets.readers.halves import divide, half
from embae.datasets.readers.image_files import Counts, check

COUNTS = {"identities": 70, "cameras": 3}


def records(
    root: Path,
    *,
    pattern: str = r"(?P<pid>\d{4})(?P<camid>\d{4})\d{4}\.\w+$",
    split: Literal["half", "all"] = "half",
    seed: int = 0,
    counts: Counts = "official",
) -> list[Record]:
    """WARD; the lowest camera holds the queries, the others the gallery.

    Args:
        root: The folder of images.
        pattern: Where the path has person and camera; the default is the naming that others' readers describe, which
            could not be held against the original.
        split: ``half`` trains on 35 people and tests on the others; ``all`` trains on everyone.
        seed: Draws the half.
        counts: ``official`` refuses a set without 70 people and 3 cameras, ``any`` takes it as it is.
    """
    found = folder.records(root, pattern=pattern)
    if split == "half":
        found = divide(found, half(found, seed), query_cameras={min(one.camid for one in found)})
    return check(root, found, COUNTS, counts)
