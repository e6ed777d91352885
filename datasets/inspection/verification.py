"""Reads all of a dataset and says what does not agree."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from embae.datasets.console.progress import Report, progress
from embae.datasets.errors import DataError
from embae.datasets.files.tar import Member, read_members
from embae.datasets.images.encoding import decode_jpeg
from embae.datasets.images.jpeg import check_jpeg
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, REMEDY
from embae.datasets.index.columns import check_columns
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.shard_reader import ShardReader, describe_row
from embae.datasets.index.summary import counts, fingerprint
from embae.datasets.index.table import TABLE

_NAMED = 20  # problems named in one shard
_SIDECAR = 4096  # bytes of a JSON that are read at most; those of embae have 100


def verify(index: Index, progress: Report = progress) -> list[str]:
    """Decodes every image, and checks its checksum, its place and name in the tar, its size in pixels and its JSON.

    Also recomputes the fingerprint and the counts of the card, and looks for rows out of order.

    Args:
        index: The dataset.
        progress: How to report; gets the images as their shards are done.

    Returns:
        A sentence for each problem, naming file, key and row; none if all is well.
    """
    try:
        index.validate()
        check_columns(index, index.root / TABLE)
    except DataError as error:
        return [str(error)]  # nothing that it says about the shards can be relied on
    problems = _check_card(index)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        with progress(f"verifying {index.name}", len(index)) as advance:
            for images, shard_problems in pool.map(partial(_check_shard, index), range(len(index.shards))):
                problems += shard_problems
                advance(images)
    finally:
        pool.shutdown(cancel_futures=True)
    return problems


def check_rows(index: Index) -> None:
    """Checks every row of the index and opens no shard: 0.15 s for a million images.

    Raises:
        DataError: An impossible value, or rows that do not match the fingerprint or the card.
    """
    index.validate()
    if problems := _check_card(index):
        raise DataError("; ".join(problems) + f"; copy both again, or {REMEDY}")


def _check_card(index: Index) -> list[str]:
    problems = []
    if (actual := fingerprint(index)) != index.fingerprint:
        problems.append(f"{index.root / TABLE}: its rows have the fingerprint {actual[:12]}, {CARD} says "
                        f"{index.fingerprint[:12]}: a key, split, pid, camid, role or checksum has changed")
    if counts(index) != index.card["counts"]:
        problems.append(f"{index.root / CARD}: its counts are not those of {TABLE}")
    one = index.height.min() == index.height.max() and index.width.min() == index.width.max()
    if (actual_size := (int(index.height[0]), int(index.width[0])) if one else None) != index.image:
        problems.append(f"{index.root / CARD}: image is {index.image}, the rows of {TABLE} say {actual_size}")
    return problems


def _check_shard(index: Index, shard: int) -> tuple[int, list[str]]:
    """Images of a shard, and what is wrong with it."""
    start, stop = (int(row) for row in np.searchsorted(index.shard, np.array([shard, shard + 1], dtype=np.int32)))
    path = index.root / index.shards[shard]
    problems = []
    with ShardReader(index) as reader:
        for row in range(start, stop):
            try:
                data = reader.read(row)
                check_jpeg(data, describe_row(index, row))
                decode_jpeg(data, describe_row(index, row))
            except DataError as error:
                problems.append(str(error))
    problems += _check_members(index, shard, range(start, stop))
    if len(problems) > _NAMED:
        problems[_NAMED:] = [f"{path}: and {len(problems) - _NAMED:,} more problems"]
    return stop - start, problems


def _check_members(index: Index, shard: int, rows: range) -> list[str]:
    """Whether the tar, read as any WebDataset reader reads it, has the images of the index in the same order."""
    path = index.root / index.shards[shard]
    images: list[Member] = []
    sidecars: dict[str, bytes] = {}
    problems = []
    try:
        with open(index.open_shard(shard), "rb") as tar:
            for member in read_members(tar):
                if member.extension == "jpg":
                    images.append(member)
                else:
                    tar.seek(member.offset)
                    sidecars[member.key] = tar.read(min(member.size, _SIDECAR))
    except (DataError, OSError) as error:
        problems.append(f"{path}: not a whole tar of ours ({error}); copy it again or shard the dataset again")
    for row, member in zip(rows, images, strict=False):
        key = index.key(row)
        place = (member.offset, member.size)
        indexed = (int(index.offset[row]), int(index.size[row]))
        if member.key != key:
            problems.append(f"{describe_row(index, row)}: the tar has {member.key}.jpg in its place")
        elif place != indexed:
            problems.append(f"{describe_row(index, row)}: has offset and size {place} in the tar, {indexed} in "
                            "the index")
        elif not _is_sidecar(sidecars.get(key, b""), index, row):
            problems.append(f"{describe_row(index, row)}: {key}.json is missing or says otherwise than the index")
    if len(images) < len(rows):
        row = rows[len(images)]
        problems.append(f"{path}: the tar ends after {len(images):,} images, expected {len(rows):,}; "
                        f"the first missing one is {index.key(row)} (row {row})")
    elif len(images) > len(rows):
        problems.append(f"{path}: the tar has {len(images):,} images, the index {len(rows):,}")
    return problems


def _is_sidecar(content: bytes, index: Index, row: int) -> bool:
    expected = {
        "pid": int(index.pid[row]) if index.labelled[row] else None,
        "camid": int(index.camid[row]),
        "role": ROLES[index.role[row]],
        "split": SPLITS[index.split[row]],
        "dataset": index.name,
    }
    try:
        return bool(json.loads(content) == expected)
    except (ValueError, RecursionError):
        return False
