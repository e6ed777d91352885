"""PKU-Reid: 114 people, 2 cameras, 8 orientations (Ma et al., 2016).

001_01_1.png                                     as released: person, camera, orientation
train|val/all_imgs/001/01_1.png                  the subset of 74 people that is on GitHub; its val/query and
                                                 val/gallery repeat val/all_imgs and are not read
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers.identity_splits import assign_splits, draw_half
from embae.datasets.readers.image_files import file_record, match_images
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

RELEASED = {"images": 1_824, "identities": 114, "cameras": 2}
SUBSET = {"images": 1_184, "identities": 74, "cameras": 2}
NAME = re.compile(r"^(\d+)[_/](\d+)_\d\.\w+$")


def list_records(
    root: Path,
    *,
    split: Literal["half", "official", "all"] = "half",
    seed: int = 0,
    counts: Counts = "official",
) -> list[Record]:
    """PKU-Reid; camera 1 has the queries, camera 2 the gallery.

    The release's naming is known from its README only, the subset's from a copy.

    Args:
        root: The folder of the images as released, or the one with the subset's `train` and `val`.
        split: ``half`` trains on half of the people (57 of 114) and tests on the others. ``official`` is the division
            of the subset, 62 and 12 people; the release's own is not known. ``all`` trains on everyone.
        seed: Draws the half.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    subset = (root / "train").is_dir() and (root / "val" / "all_imgs").is_dir()
    if split == "official" and not subset:
        raise DataError(f"{root}: split=official needs the folders train and val/all_imgs, which were not found; "
                        "divide the people with split=half")
    folders = [root / "train", root / "val" / "all_imgs"] if subset else [root]
    records = [
        file_record(root, folder / path, int(match[1]), int(match[2]))
        for folder in folders
        for path, match in match_images(folder, NAME, "PERSON_CAMERA_ORIENTATION.png")
    ]
    if split == "half":
        records = assign_splits(records, draw_half(records, seed), query_cameras={1})
    elif split == "official":
        train = {record.pid for record in records if record.key.startswith("train/")}
        records = assign_splits(records, train, query_cameras={1})
    return check_counts(root, records, SUBSET if subset else RELEASED, counts)


READER = Reader("pku-reid", "PKU-Reid: release or GitHub subset", list_records)
