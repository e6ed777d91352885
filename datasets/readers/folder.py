"""Anyone's own images in folders.

train/…  query/…  gallery/…      the top folder says the split; whatever lies elsewhere trains
"""

from __future__ import annotations

from pathlib import Path

from embae.datasets.readers._common import images, matches, record
from embae.datasets.readers._labels import cameras, compile_pattern, numbered
from embae.datasets.records import SPLITS, Record, Role, Split


def records(
    root: Path, *, pattern: str | None = None, junk_pid: str | None = None, distractor_pid: str | None = None
) -> list[Record]:
    """Every image below `root`.

    Args:
        root: A folder.
        pattern: A regular expression that is searched for in every path relative to `root`, such as
            ``(?P<pid>[^/]+)/cam(?P<camid>\\d+)``. Without a group pid, or where it takes no part, images are
            unlabelled; without a group camid all are from camera 0. Labels that are all whole numbers are taken as they
            are; otherwise they are numbered from 0 in sorted order.
        junk_pid: The pid, as it is written in the path, of images that are ignored by the metric.
        distractor_pid: The pid, as it is written in the path, of images that are nobody's match.
    """
    if pattern is None:
        return [record(root, path, None, 0, _split(root, path)) for path in images(root)]
    found = matches(
        root, compile_pattern(pattern), f"as pattern={pattern} wants", "mend the pattern, or move them away"
    )
    labels = [match.groupdict() for _, match in found]
    pids = [label.get("pid") for label in labels]
    names = [path.relative_to(root).as_posix() for path, _ in found]
    camids = cameras(root, names, [label.get("camid") for label in labels])
    numbers = numbered(pids)
    roles: dict[str | None, Role] = {distractor_pid: "distractor", junk_pid: "junk", None: "person"}
    return [
        record(root, path, None if pid is None else numbers[pid], camid, _split(root, path), roles.get(pid, "person"))
        for (path, _), pid, camid in zip(found, pids, camids, strict=True)
    ]


def _split(root: Path, path: Path) -> Split:
    top = path.relative_to(root).parts[0]
    return next((split for split in SPLITS if split == top), "train")
