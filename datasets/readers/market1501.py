"""Market-1501: 1,501 people, 6 cameras (Zheng et al., ICCV 2015).

Market-1501-v15.09.15/bounding_box_train|query|bounding_box_test/0002_c1s1_000451_03.jpg      person, camera
"""

from __future__ import annotations

import re
from pathlib import Path

from embae.datasets.index.records import Record, Role, Split
from embae.datasets.readers.image_files import file_record, find_folder, match_images
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

FOLDERS: dict[str, Split] = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
COUNTS = {
    "train images": 12_936, "train identities": 751, "query images": 3_368, "query identities": 750,
    "gallery images": 19_732, "gallery identities": 750, "gallery distractor images": 2_798,
    "gallery junk images": 3_819, "cameras": 6,
}  # fmt: skip
ROLES: dict[int, Role] = {-1: "junk", 0: "distractor"}


def list_records(root: Path, *, counts: Counts = "official") -> list[Record]:
    """Market-1501 as released.

    Person -1 (boxes that missed) is junk and person 0 (background) is a distractor; both are in the gallery.

    Args:
        root: `Market-1501-v15.09.15` or the folder that contains it.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    return check_counts(root, list_bounding_boxes(root, "Market-1501-v15.09.15", ROLES), COUNTS, counts)


def list_bounding_boxes(root: Path, official: str, roles: dict[int, Role]) -> list[Record]:
    """The layout of Market-1501, which other datasets use too.

    Args:
        root: The dataset's folder, or the folder that contains it.
        official: The name of the dataset's folder as released.
        roles: Roles of the pids that are not persons.
    """
    root = find_folder(root, list(FOLDERS), [official])
    pattern = re.compile(r"^(-?\d+)_c(\d)")
    return [
        file_record(root, root / folder / path, pid := int(match[1]), int(match[2]), split, roles.get(pid, "person"))
        for folder, split in FOLDERS.items()
        for path, match in match_images(root / folder, pattern, "PERSON_cCAMERA….jpg")
    ]


READER = Reader("market1501", "Market-1501, as released", list_records)
