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
from embae.datasets.readers.halves import divide, half
from embae.datasets.readers.image_files import Counts, check, matches, record

RELEASED = {"images": 1_824, "identities": 114, "cameras": 2}
SUBSET = {"images": 1_184, "identities": 74, "cameras": 2}


def records(
    root: Path,
    *,
    split: Literal["half", "official", "all"] = "half",
    seed: int = 0,
    counts: Counts = "official",
) -> list[Record]:
    """PKU-Reid; camera 1 holds the queries, camera 2 the gallery.

    The release's naming is known from its README only, the subset's from a copy.

    Args:
        root: The folder of the images as released, or the one with the subset's `train` and `val`.
        split: ``half`` trains on half of the people (57 of 114) and tests on the others. ``official`` is the division
            of the subset, 62 and 12 people; the release's own is not known. ``all`` trains on everyone.
        seed: Draws the half.
        counts: ``official`` refuses a set that is not complete, ``any`` takes it as it is.
    """
    subset = (root / "train").is_dir() and (root / "val" / "all_imgs").is_dir()
    if split == "official" and not subset:
        raise DataError(f"{root}: has no train and val/all_imgs, so no division of its own; split=half makes one")
    folders = [root / "train", root / "val" / "all_imgs"] if subset else [root]
    found = [
        record(root, folder / path, int(match[1]), int(match[2]))
        for folder in folders
        for path, match in matches(folder, re.compile(r"^(\d+)[_/](\d+)_\d\.\w+$"), "PERSON_CAMERA_ORIENTATION.png")
    ]
    if split == "half":
        found = divide(found, half(found, seed), query_cameras={1})
    elif split == "official":
        train = {one.pid for one in found if one.key.startswith("train/")}
        found = divide(found, train, query_cameras={1})
    return check(root, found, SUBSET if subset else RELEASED, counts)
