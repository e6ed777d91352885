"""Images that a person points at → a dataset: one that is sharded is opened, a folder of images is sharded first.

    shards/market1501, s3://bucket/market1501     opened as it is
    footage/station                               images below it; the first sub-folder is the camera
    'footage/station/*/2024-05-*/*.jpg'           those of them that the pattern of the shell finds
    shards/all                                    a merged set: its members (`open_source` alone)

Every image is decoded once on the way, so that what cannot be is refused by name. Images without labels are the usual
case; `pattern` takes labels, cameras and splits from their paths as `embae shard folder` does.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, MERGED, datasets_in
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.index.records import FileImage, Record, Split, camera_names
from embae.datasets.readers.read import read_records
from embae.datasets.remote.url import Url, parse_location
from embae.datasets.sharding.index import SKIPPED
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

_CAMERA = r"^(?:(?P<camid>[^/]+)/)?"  # the first sub-folder; images that lie in none are from camera 0


@dataclass(frozen=True)
class ImageSource:
    """What a person points at: one dataset, or a merged set.

    Attributes:
        name: Its own.
        root: Where it is.
        indexes: The dataset, or the members.
    """

    name: str
    root: Path | Url
    indexes: tuple[Index, ...]

    @classmethod
    def open(cls, place: Path | Url) -> ImageSource:
        """Opens what is sharded.

        Raises:
            DataError: It is missing or damaged.
        """
        if is_merged(place):
            merged = Merged.open(place)
            return cls(merged.name, merged.root, merged.indexes)
        index = Index.open(place)
        return cls(index.name, index.root, (index,))

    @property
    def fingerprint(self) -> str:
        """The dataset's, or one of all members'."""
        if len(self.indexes) == 1:
            return self.indexes[0].fingerprint
        return hashlib.sha256("".join(f"{one.name} {one.fingerprint}\n" for one in self.indexes).encode()).hexdigest()

    def count(self, split: Split) -> int:
        """How many images a split has."""
        return sum(index.count(split) for index in self.indexes)

    def __len__(self) -> int:
        return sum(map(len, self.indexes))


def open_source(where: str, root: Path | Url | None, *, name: str | None = None, pattern: str | None = None, keep: Path,
               skip_bad: bool = False) -> ImageSource:
    """What a person names beside a run: a dataset or merged set, by its name below the run's ``data.root`` or by its
    place, or what else `footage` takes.

    Args:
        where: As the command line has it.
        root: The run's, where there is one.
        name, pattern, keep, skip_bad: See `footage`.

    Raises:
        DataError: See `footage`.
    """
    if root is not None and "://" not in where and not os.path.exists(where) and not glob.has_magic(where):
        below = root / where
        if isinstance(below, Url) or is_sharded(str(below)):
            where = str(below)
    if (sharded := is_sharded(where)) is not None:
        pointed = ImageSource.open(sharded)
        _refuse_options(where, pointed.name, name, pattern)
        return pointed
    index = footage(where, name=name, pattern=pattern, keep=keep, skip_bad=skip_bad)
    return ImageSource(index.name, index.root, (index,))


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
        _refuse_options(where, index.name, name, pattern)
        return index
    root, records = images(where, pattern)
    name = name or fit_name(root)
    named = camera_names(records)
    if len(named) > 1:
        note(f"{where}: cameras {', '.join(f'{number} = {camera}' for camera, number in named.items())}")
    if deeper := None if pattern else _deeper(root, records):
        note(f"{where}: the sub-folders are taken as cameras, and images in deeper folders ({deeper}) as images of "
             "these cameras; if the deeper folders are the cameras, give one of the sub-folders, or "
             "--pattern '^(?P<camid>[^/]+/[^/]+)/'")
    about = {"reader": "folder", "root": str(root.resolve()), "options": {"pattern": pattern} if pattern else {}}
    index = shard(name, records, keep, source=about, size=size, skip_bad=skip_bad)
    if skipped := index.card.get("skipped"):
        note(f"{where}: {skipped:,} images that cannot be decoded are left out: {index.root}/{SKIPPED}")
    return index


def _refuse_options(where: str, sharded_name: str, name: str | None, pattern: str | None) -> None:
    for option, is_given in (("name", name not in (None, sharded_name)), ("pattern", pattern is not None)):
        if is_given:
            raise DataError(f"{where}: is sharded already, as {sharded_name}; --{option} is for a folder of images")


def is_sharded(where: str) -> Path | Url | None:
    """The place of a sharded dataset, or of a merged set; None where there is none."""
    place = parse_location(where)
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
    root, matches = Path(where), None
    if not os.path.isdir(root) and glob.has_magic(where):
        above = [part for part in (root, *root.parents) if not glob.has_magic(str(part))]
        root, matches = above[0], {os.path.abspath(path) for path in glob.glob(where, recursive=True)}
    if os.path.isdir(root) and (inside := datasets_in(root)):
        raise DataError(f"{where}: holds the datasets {', '.join(inside)}; name one of them")
    if not os.path.isdir(root):
        raise DataError(f"{where}: no such folder; expected a folder of images, or a sharded dataset")
    records = read_records("folder", root, {"pattern": pattern or _CAMERA})
    if matches is not None:
        records = [record for record in records if os.path.abspath(_path(record)) in matches]
        if not records:
            raise DataError(f"{where}: no image below {root} matches")
    return root, records if pattern else [replace(record, split="train") for record in records]


def _deeper(root: Path, records: Sequence[Record]) -> str:
    """Some folders with images that lie below a camera's, for a message; empty where there are none."""
    folders = {os.path.dirname(_path(record)) for record in records}
    inside = [Path(folder).relative_to(root) for folder in folders]
    below = sorted(folder.as_posix() for folder in inside if len(folder.parts) > 1)
    return ", ".join(below[:3]) + ", …" * (len(below) > 3)


def shard(name: str, records: Sequence[Record], keep: Path, *, source: dict[str, Any],
          size: tuple[int, int] | None = None, skip_bad: bool = False) -> Index:
    """Shards image files into a folder below `keep` whose name is a digest of them: unchanged files are sharded once.

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
        line = f"{record.key} {record.split} {record.pid} {record.camid} {path} {now.st_size} {now.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return write_shards(
        name, records, keep / digest.hexdigest()[:16], source=source, options=ShardOptions(size=size, skip_bad=skip_bad)
    )


def fit_name(root: Path) -> str:
    """A dataset's name for a folder: that of the folder, with ``_`` for letters that no name may have.

    Raises:
        DataError: No letter of it may be in a name.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", root.resolve().name)[:100].lstrip("_-")
    if not name:
        raise DataError(f"{root}: cannot be the name of a dataset; give one with --name")
    return name


def _path(record: Record) -> Path:
    assert isinstance(record.image, FileImage)  # the folder reader's
    return record.image.path
