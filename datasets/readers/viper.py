"""VIPeR: 632 people, 2 cameras, 1 image of each in both (Gray and Tao, ECCV 2008).

cam_a|cam_b/000_45.bmp      person, angle; the two images of a person share the person's number
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from embae.datasets.index.records import Record
from embae.datasets.readers.identity_splits import assign_splits, draw_half
from embae.datasets.readers.image_files import file_record, find_folder, match_images
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

CAMERAS = {"cam_a": 1, "cam_b": 2}
COUNTS = {"images": 1_264, "identities": 632, "cameras": 2}


def list_records(
    root: Path, *, split: Literal["half", "all"] = "half", seed: int = 0, counts: Counts = "official"
) -> list[Record]:
    """VIPeR; camera a is 1 and has the queries, camera b is 2 and has the gallery.

    Args:
        root: `VIPeR`, or the folder that contains it.
        split: ``half`` trains on 316 people and tests on the others, as published; ``all`` trains on everyone.
        seed: Draws the half (published figures are means over ten such draws).
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    home = find_folder(root, list(CAMERAS), ["VIPeR"])
    records = [
        file_record(home, home / name / path, int(match[1]), camid)
        for name, camid in CAMERAS.items()
        for path, match in match_images(home / name, re.compile(r"^(\d+)_"), "PERSON_ANGLE.bmp")
    ]
    if split == "half":
        records = assign_splits(records, draw_half(records, seed), query_cameras={1})
    return check_counts(root, records, COUNTS, counts)


READER = Reader("viper", "VIPeR: half of the people train", list_records)
