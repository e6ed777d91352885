"""Which image goes into which shard: decided from the records alone, so that shards can be written in any order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from embae.datasets.errors import DataError
from embae.datasets.images.encoding import QUALITY, SUBSAMPLING
from embae.datasets.index.card import NAME
from embae.datasets.index.records import ROLES, SPLITS, Record
from embae.datasets.sharding.options import ShardOptions

_FORMAT = 1  # of what shards look like; another number makes unfinished shards start again
KEY = re.compile(r"[A-Za-z0-9_-]{1,95}")  # a tar header holds 100 characters, ".json" among them


@dataclass(frozen=True)
class ShardPlan:
    """What a dataset's shards will hold.

    Attributes:
        shards: Shard name without ``.tar`` → its records, both in index order.
        digest: SHA-256 of all that decides what is written: equal digests make interchangeable shards.
        images: How many records there are.
    """

    shards: dict[str, list[Record]]
    digest: str
    images: int


def plan_shards(name: str, records: Sequence[Record], options: ShardOptions) -> ShardPlan:
    """Sorts the records in the order of an `Index` and cuts them into shards of one split each.

    An identity is in one shard, unless it has more images than fit.

    Args:
        name: The dataset's name.
        records: Its images.
        options: Their size, and how many are in one shard at most.

    Raises:
        DataError: A name, number or record that cannot be used, or no records.
    """
    size, images_per_shard = options.size, options.images_per_shard
    if not NAME.fullmatch(name):
        raise DataError(f"dataset name {name!r}: expected up to 100 letters, digits, '_' and '-', beginning with a "
                        "letter or digit")
    if size is not None and not all(type(side) is int and 1 <= side <= 65_500 for side in size):
        raise DataError(f"size {size}: expected (height, width) in pixels, each 1 … 65500")
    if images_per_shard < 1:
        raise DataError(f"images per shard: {images_per_shard}, expected at least 1")
    check_records(name, records)
    ordered = sorted(records, key=_order)
    shards: dict[str, list[Record]] = {}
    for split, members in groupby(ordered, key=lambda record: record.split):
        for number, shard in enumerate(_cut(list(members), images_per_shard)):
            shards[f"{split}-{number:06d}"] = shard
    digest = hashlib.sha256(f"{_FORMAT} {name} {size} {images_per_shard} {QUALITY} {SUBSAMPLING}\n".encode())
    for r in ordered:
        digest.update(f"{r.key} {r.split} {r.pid} {r.camid} {r.role} {r.image}\n".encode("utf-8", "surrogateescape"))
    return ShardPlan(shards, digest.hexdigest(), len(ordered))


def check_records(name: str, records: Sequence[Record]) -> None:
    """Checks what a reader returned.

    Raises:
        DataError: No records, a repeated or malformed key, an unknown split or role, or a number that does not fit.
    """
    if not records:
        raise DataError(f"{name}: no images; check the folder that was given, and the reader's options")
    seen: dict[str, Record] = {}
    for record in records:
        where = f"{name}: {record.image} (key {record.key!r})"
        if not isinstance(record.key, str) or not KEY.fullmatch(record.key):
            raise DataError(f"{where}: a key has letters, digits, '_' and '-', 1 to 95 of them")
        if (other := seen.setdefault(record.key, record)) is not record:
            raise DataError(f"{where}: {other.image} has the same key; keys are unique within a dataset")
        if record.split not in SPLITS:
            raise DataError(f"{where}: split {record.split!r}, expected one of {', '.join(SPLITS)}")
        if record.role not in ROLES:
            raise DataError(f"{where}: role {record.role!r}, expected one of {', '.join(ROLES)}")
        if type(record.camid) is not int or not 0 <= record.camid < 2**31:
            raise DataError(f"{where}: camid {record.camid!r}, expected a whole number from 0 to {2**31 - 1}")
        if record.pid is not None and (type(record.pid) is not int or not -(2**63) <= record.pid < 2**63):
            raise DataError(f"{where}: pid {record.pid!r}, expected a whole number of 64 bits, or None where not known")


def _order(record: Record) -> tuple[int, bool, int, int, str]:
    return SPLITS.index(record.split), record.pid is None, record.pid or 0, record.camid, record.key


def _cut(records: list[Record], most: int) -> list[list[Record]]:
    """Cuts one split between identities where it can, within one only where it must."""
    shards: list[list[Record]] = [[]]
    for pid, members in groupby(records, key=lambda record: record.pid):
        images = list(members)
        # Images without a pid need not stay together: they are cut anywhere.
        if pid is not None and shards[-1] and len(shards[-1]) + len(images) > most:
            shards.append([])
        while images:
            if len(shards[-1]) == most:
                shards.append([])
            room = most - len(shards[-1])
            shards[-1].extend(images[:room])
            images = images[room:]
    return shards
