"""Images that a person points at → a dataset: one that is sharded is opened, a folder of images is sharded first.

    shards/market1501, s3://bucket/market1501     opened as it is
    footage/station                               images below it; the first sub-folder is the camera
    'footage/station/*/2024-05-*/*.jpg'           those of them that the pattern of the shell finds

Every image is decoded once on the way, so that what cannot be is refused by name. Images without labels are the usual
case; `pattern` takes labels, cameras and splits from their paths as `embae shard folder` does.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from embae.datasets.card import CARD, MERGED, datasets_in
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.progress import note
from embae.datasets.readers import read
from embae.datasets.records import FileImage, Record
from embae.datasets.remote import Url, location
from embae.datasets.sharding import write_shards

_CAMERA = r"^(?:(?P<camid>[^/]+)/)?"  # the first sub-folder; images that lie in none are from camera 0


def footage(where: str, *, name: str | None = None, pattern: str | None = None, keep: Path,
            size: tuple[int, int] | None = None, skip_bad: bool = False) -> Index:
    """Opens what a person points at.

    Args:
        where: A sharded dataset, a folder or a url; or a folder of images, or a pattern of the shell for some.
        name: Of the dataset that a folder of images becomes; by default the folder's own, made fit.
        pattern: A regular expression with the groups ``camid``, ``pid`` or both, searched for in every path below the
            folder; sub-folders train, query and gallery are splits then.
        keep: Where a folder of images is kept sharded. The same images are not sharded twice; others, or files that
            have changed since, never meet the shards of these.
        size: (height, width) in pixels to store them at; None keeps the originals.
        skip_bad: Leave out, and list, what cannot be decoded.

    Raises:
        DataError: There is nothing of the kind, an image cannot be decoded, or a name or pattern does not fit.
    """
    if (sharded := is_sharded(where)) is not None:
        index = Index.open(sharded)
        for option, given in (("name", name not in (None, index.name)), ("pattern", pattern is not None)):
            if given:
                raise DataError(f"{where}: is sharded already, as {index.name}; {option} goes with a folder of images")
        return index
    root, found = images(where, pattern)
    named = cameras_of(root, found, pattern)
    name = name or fit_name(root)
    if len(named) > 1:
        note(f"{where}: cameras {', '.join(f'{number} = {camera}' for camera, number in named.items())}")
    about = {"reader": "folder", "root": str(root.resolve()), "options": {"pattern": pattern} if pattern else {},
             "cameras": named}
    return shard(name, found, keep, source=about, size=size, skip_bad=skip_bad)


def cameras(index: Index) -> dict[str, int]:
    """Name → camid of a dataset's cameras: of sub-folders where `footage` made it, else the numbers themselves."""
    named = index.card.get("source", {}).get("cameras")
    if isinstance(named, dict) and named and all(type(camid) is int for camid in named.values()):
        return {str(camera): camid for camera, camid in named.items()}
    counts = index.card["counts"]
    return {str(camid): camid for camid in sorted({camid for split in counts.values() for camid in split["cameras"]})}


def is_sharded(where: str) -> Path | Url | None:
    """The place of a sharded dataset, or of a merged set; None where there is none."""
    place = location(where)
    if isinstance(place, Url) or any(os.path.isfile(place / card) for card in (CARD, MERGED)):
        return place
    return None


def images(where: str, pattern: str | None = None) -> tuple[Path, list[Record]]:
    """The images of a folder, or those that a pattern of the shell finds, and the folder that paths are taken from.

    Args:
        where: The folder or the pattern (``*``, ``?``, ``[…]``, ``**`` for any depth).
        pattern: See `footage`; without one there are no labels, no splits, and the first sub-folder is the camera.

    Raises:
        DataError: There is no such folder or no image in it, or the pattern does not fit.
    """
    root, wanted = Path(where), None
    if not os.path.isdir(root) and glob.has_magic(where):
        above = [part for part in (root, *root.parents) if not glob.has_magic(str(part))]
        root, wanted = above[0], {os.path.abspath(path) for path in glob.glob(where, recursive=True)}
    if os.path.isdir(root) and (inside := datasets_in(root)):
        raise DataError(f"{where}: holds the datasets {', '.join(inside)}; name one of them")
    if not os.path.isdir(root):
        raise DataError(f"{where}: no such folder; wanted one of images, or a sharded dataset")
    found = read("folder", root, {"pattern": pattern or _CAMERA})
    if wanted is not None:
        found = [record for record in found if os.path.abspath(_path(record)) in wanted]
        if not found:
            raise DataError(f"{where}: no image below {root} is named so")
    return root, found if pattern else [replace(record, split="train") for record in found]


def cameras_of(root: Path, found: Sequence[Record], pattern: str | None) -> dict[str, int]:
    """What `images` numbered the cameras: name, as it stands in the paths, → camid; empty where none is named."""
    named = {}
    for record in found:
        match = re.search(pattern or _CAMERA, _path(record).relative_to(root).as_posix())
        camera = match.groupdict().get("camid") if match else None
        if camera is not None:
            named[camera] = record.camid
    return dict(sorted(named.items(), key=lambda one: one[1]))


def shard(name: str, records: Sequence[Record], keep: Path, *, source: dict[str, Any],
          size: tuple[int, int] | None = None, skip_bad: bool = False) -> Index:
    """`write_shards` of image files into a folder of their own below `keep`, found again by what they are now.

    Raises:
        DataError: An image cannot be decoded, or a name does not fit.
    """
    digest = hashlib.sha256(f"{name} {size}\n".encode())
    for record in records:
        path = _path(record)
        try:
            now = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        told = f"{record.key} {record.split} {record.pid} {record.camid} {path} {now.st_size} {now.st_mtime_ns}\n"
        digest.update(told.encode("utf-8", "surrogateescape"))
    return write_shards(name, records, keep / digest.hexdigest()[:16], source=source, size=size, skip_bad=skip_bad)


def fit_name(root: Path) -> str:
    """A dataset's name for a folder: its own, with ``_`` for what no name may hold.

    Raises:
        DataError: Nothing of it may be in a name.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", root.resolve().name)[:100].lstrip("_-")
    if not name:
        raise DataError(f"{root}: cannot be the name of a dataset; give one with --name")
    return name


def _path(record: Record) -> Path:
    assert isinstance(record.image, FileImage)  # the folder reader's
    return record.image.path
