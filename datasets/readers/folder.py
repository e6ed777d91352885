"""A user's own images in folders.

train/…  query/…  gallery/…      the top folder is the split; images elsewhere train

Any nesting is allowed. The pattern says which parts of a path are labels, for tracklets too:

0001/0001C1T0002F003.jpg         pattern=/(?P<pid>\\d{4})C(?P<camid>\\d)T                  MARS
cam1/person001/frame7.png        pattern=cam(?P<camid>\\d)/person(?P<pid>\\d+)/            iLIDS-VID, PRID 2011
door/track-17/0003.jpg           pattern=^(?P<pid>(?P<camid>[^/]+)/[^/]+)/                 a tracklet is a person
door/2024-05-01/0003.jpg         pattern=^(?P<camid>[^/]+)/                                unlabelled, cameras by folder
"""

from __future__ import annotations

from pathlib import Path

from embae.datasets.index.records import SPLITS, FileImage, Record, Role, Split
from embae.datasets.readers.image_files import list_images, match_images
from embae.datasets.readers.label_numbers import compile_pattern, number_cameras, number_labels
from embae.datasets.readers.reader import Reader


def list_records(
    root: Path, *, pattern: str | None = None, junk_pid: str | None = None, distractor_pid: str | None = None
) -> list[Record]:
    """Every image below `root`.

    Args:
        root: A folder.
        pattern: A regular expression that is searched for in every path relative to `root`, such as
            ``(?P<pid>[^/]+)/cam(?P<camid>\\d+)``. Without a group pid, or where the group matches nothing, images
            are unlabelled; without a group camid all are from camera 0. Labels that are all whole numbers stand for
            themselves; otherwise they are numbered from 0 in sorted order.
        junk_pid: The pid, as it is written in the path, of images that the metric ignores.
        distractor_pid: The pid, as it is written in the path, of images that match no query.
    """
    if pattern is None:
        return [Record(path, _split(path), None, 0, FileImage(root / path)) for path in list_images(root)]
    matches = match_images(root, compile_pattern(pattern), f"as pattern={pattern} expects",
                           "correct the pattern, or move them away")
    labels = [match.groupdict() for _, match in matches]
    pids = [label.get("pid") for label in labels]
    cameras = number_cameras(root, [path for path, _ in matches], [label.get("camid") for label in labels])
    numbers = number_labels(pids)
    roles: dict[str | None, Role] = {distractor_pid: "distractor", junk_pid: "junk", None: "person"}
    return [
        Record(path, _split(path), None if pid is None else numbers[pid], camid, FileImage(root / path),
               roles.get(pid, "person"), camera)
        for (path, _), pid, (camid, camera) in zip(matches, pids, cameras, strict=True)
    ]


def _split(path: str) -> Split:
    top = path.partition("/")[0]
    return next((split for split in SPLITS if split == top), "train")


READER = Reader("folder", "your images; labels from paths", list_records)
