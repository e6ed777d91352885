"""Training and test identities for datasets that come without a fixed division."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import replace

from embae.datasets.index.records import Record


def draw_half(records: Iterable[Record], seed: int) -> set[int]:
    """Half of the identities, rounded down, drawn by `seed`.

    The draw orders identities by a hash of seed and pid. It is therefore the same on every machine and with every
    version of every library, and does not depend on the order of the records.
    """
    pids = {record.pid for record in records if record.pid is not None}
    ordered = sorted(pids, key=lambda pid: hashlib.sha256(f"{seed} {pid}".encode()).digest())
    return set(ordered[: len(ordered) // 2])


def assign_splits(records: Iterable[Record], train: Container[int | None], query_cameras: Container[int]
                  ) -> list[Record]:
    """The records with their split set: identities of `train` train, all others are query or gallery by camera."""

    def split(record: Record) -> Record:
        if record.pid in train:
            return replace(record, split="train")
        return replace(record, split="query" if record.camid in query_cameras else "gallery")

    return [split(record) for record in records]
