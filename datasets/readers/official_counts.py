"""Compares what a reader has read with the dataset's official numbers of images, identities and cameras."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from embae.datasets.errors import DataError
from embae.datasets.index.records import SPLITS, Record

Counts = Literal["official", "any"]
"""The option ``counts`` of a reader: refuse a dataset that is not complete, or take it as it is."""


def count_records(records: Iterable[Record]) -> dict[str, int]:
    """Images, identities and cameras, in all and per split; identities are those of persons."""
    records = list(records)
    counts = {"cameras": len({record.camid for record in records})}
    for split in (None, *SPLITS):
        chosen = [record for record in records if split in (None, record.split)]
        prefix = f"{split} " if split else ""
        counts[f"{prefix}images"] = len(chosen)
        counts[f"{prefix}identities"] = len({record.pid for record in chosen if record.role == "person"})
        for role in ("distractor", "junk"):
            counts[f"{prefix}{role} images"] = sum(record.role == role for record in chosen)
    return counts


def check_counts(root: Path, records: list[Record], expected: Mapping[str, int], counts: Counts) -> list[Record]:
    """Returns the records if their numbers agree with the official ones, or if ``counts`` is ``any``.

    Raises:
        DataError: They do not agree; the message names what was found, what was expected and the remedy.
    """
    if counts == "any":
        return records
    actual = count_records(records)
    wrong = [
        f"{name} {actual[name]:,} (expected {number:,})" for name, number in expected.items() if actual[name] != number
    ]
    if wrong:
        raise DataError(
            f"{root}: not the official set: found {', '.join(wrong)}; "
            f"complete it from the official source, or take it as it is with counts=any"
        )
    return records
