"""The parts that the writers of shards leave → the index and the card of the dataset."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import sync_folder, write_text
from embae.datasets.index.card import CARD
from embae.datasets.index.columns import Columns
from embae.datasets.index.records import ROLES, SPLITS, Record
from embae.datasets.index.table import TABLE
from embae.datasets.index.writer import write_index
from embae.datasets.sharding.plan import ShardPlan
from embae.datasets.sharding.writer import TEMPORARY, part_path, stamp

SKIPPED = "skipped.txt"


def write_shard_index(partial: Path, plan: ShardPlan, name: str, source: Mapping[str, Any]) -> None:
    """Writes index, card and list of bad images, first in a separate folder: other machines may be doing the same.

    Args:
        partial: Where the shards and their parts are.
        plan: What they were written from.
        name: The dataset's name.
        source: Where the images came from, for the card.

    Raises:
        DataError: Not one image could be decoded.
        FileNotFoundError: A part is not there or another one now, or the folder has been renamed meanwhile.
    """
    scratch = partial / f"index.{secrets.token_hex(8)}{TEMPORARY}"
    scratch.mkdir()
    try:
        before = _stamps(partial, plan)
        columns, bad = assemble(partial, plan)
        if bad:
            write_text(scratch / SKIPPED, "".join(f"{why}\n" for why in bad))
            os.replace(scratch / SKIPPED, partial / SKIPPED)
        else:
            (partial / SKIPPED).unlink(missing_ok=True)
        if columns is None:
            raise DataError(f"{name}: not one of {plan.images:,} images could be decoded; see {partial / SKIPPED}")
        write_index(scratch, name, columns, source=source, about={"plan": plan.digest, "skipped": len(bad)})
        if _stamps(partial, plan) != before:  # by a machine that found a bad image repaired
            raise FileNotFoundError(errno.ENOENT, "a shard was written again meanwhile", str(partial))
        os.replace(scratch / TABLE, partial / TABLE)
        sync_folder(partial)
        os.replace(scratch / CARD, partial / CARD)
        sync_folder(partial)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _stamps(partial: Path, plan: ShardPlan) -> list[tuple[int, int] | None]:
    return [stamp(part_path(partial, stem)) for stem in plan.shards]


def assemble(partial: Path, plan: ShardPlan) -> tuple[Columns | None, list[str]]:
    """The index, from its parts, None where it has no row; and what was wrong with each image that is left out."""
    written: list[Record] = []
    shards: list[str] = []
    bad: list[str] = []
    lengths: list[int] = []
    names = ("offset", "size", "crc32", "height", "width")
    values: list[npt.NDArray[np.int64]] = []  # 5 × images of each shard; lists of ten million numbers take gigabytes
    for stem, records in plan.shards.items():
        part = json.loads(part_path(partial, stem).read_text(encoding="utf-8"))
        bad += part["bad"].values()
        if not part["kept"]:
            continue  # all of its images were bad: there is no tar
        written.extend(records[position] for position in part["kept"])
        lengths.append(len(part["kept"]))
        shards.append(f"{stem}.tar")
        values.append(np.array([part[column] for column in names], dtype=np.int64))
    if not written:
        return None, bad
    offset, size, crc32, height, width = np.concatenate(values, axis=1)
    columns = Columns(
        keys=pa.array((record.key for record in written), type=pa.string(), size=len(written)),
        split=_column((SPLITS.index(record.split) for record in written), np.int8, written),
        pid=_column((-1 if record.pid is None else record.pid for record in written), np.int64, written),
        labelled=_column((record.pid is not None for record in written), np.bool_, written),
        camid=_column((record.camid for record in written), np.int32, written),
        role=_column((ROLES.index(record.role) for record in written), np.int8, written),
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), lengths),
        offset=offset,
        size=size.astype(np.int32),
        crc32=crc32.astype(np.uint32),
        height=height.astype(np.int32),
        width=width.astype(np.int32),
        shards=shards,
    )
    return columns, bad


def _column(values: Iterator[int], dtype: type, written: Sequence[Record]) -> npt.NDArray[Any]:
    return np.fromiter(values, dtype=dtype, count=len(written))
