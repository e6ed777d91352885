"""How a dataset is sharded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardOptions:
    """How images are stored, and how the work is done.

    Attributes:
        size: (height, width) in pixels to store the images at; None keeps the originals.
        images_per_shard: At most this many images in one tar.
        workers: Processes; None takes all cores this process may use.
        skip_bad: Leave out what cannot be decoded and list it in ``skipped.txt``, instead of refusing.
        join: Write the dataset together with other processes that are given the same records and options.
    """

    size: tuple[int, int] | None = None
    images_per_shard: int = 4096
    workers: int | None = None
    skip_bad: bool = False
    join: bool = False


DEFAULTS = ShardOptions()
