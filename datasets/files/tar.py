"""Walks a tar as `embae shard` writes it: plain files named KEY.jpg and KEY.json, one after the other.

Whatever else a tar may hold (paths, links, devices, headers that change the headers that follow) is refused: a shard
has none of it, and readers differ in what they make of it.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from embae.datasets.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"([A-Za-z0-9_-]{1,95})\.(jpg|json)")


class Member(NamedTuple):
    """A file in a tar: its name in two parts, and where its bytes are."""

    key: str
    extension: str
    offset: int
    size: int


def members(tar: BinaryIO) -> Iterator[Member]:
    """The files in a tar, in order.

    Raises:
        DataError: A damaged header, a file that ends behind the end of the tar, or something that is no plain file of
            ours; the message names the byte.
        OSError: It cannot be read.
    """
    length, at = os.fstat(tar.fileno()).st_size, 0
    while True:
        tar.seek(at)
        header = tar.read(_BLOCK)
        if not any(header):
            if not header:
                raise DataError(f"no end mark, but the end after {at:,} bytes")
            return
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"{error} at byte {at:,}") from error
        name = _NAME.fullmatch(found.name)
        if name is None or found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DataError(f"{found.name[:200]!r} at byte {at:,} is no plain file KEY.jpg or KEY.json")
        start = at + _BLOCK
        if not 0 <= found.size <= length - start:
            raise DataError(f"{found.name} at byte {at:,} has {found.size:,} bytes, more than follow")
        if not _is_ours(found, header):
            raise DataError(f"{found.name} at byte {at:,} has a damaged header")
        yield Member(name[1], name[2], start, found.size)
        at = start + -(-found.size // _BLOCK) * _BLOCK


def _is_ours(found: tarfile.TarInfo, header: bytes) -> bool:
    """Whether a header says no more than what was understood: another reader might make more of it."""
    try:
        return found.tobuf(tarfile.USTAR_FORMAT) == header
    except ValueError:  # a number that such a header does not hold
        return False
