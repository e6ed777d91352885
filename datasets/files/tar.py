"""Reads the members of a tar as `embae shard` writes it: regular files named KEY.jpg and KEY.json.

Everything else that a tar may contain (paths, links, devices, headers that change later headers) is refused: a shard
has none of it, and readers interpret it differently.
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
    """A file in a tar.

    Attributes:
        key: Its name without the extension.
        extension: ``jpg`` or ``json``.
        offset: Where its bytes start in the tar.
        size: Its bytes.
    """

    key: str
    extension: str
    offset: int
    size: int


def read_members(tar: BinaryIO) -> Iterator[Member]:
    """Yields the files in a tar, in order.

    Raises:
        DataError: A header is damaged, a file extends beyond the end of the tar, or a member is not a regular file
            named as in a shard; the message names the byte.
        OSError: The tar cannot be read.
    """
    length, position = os.fstat(tar.fileno()).st_size, 0
    while True:
        tar.seek(position)
        header = tar.read(_BLOCK)
        if not any(header):
            if not header:
                raise DataError(f"no end mark: it ends after {position:,} bytes")
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"{error} at byte {position:,}") from error
        name = _NAME.fullmatch(info.name)
        if name is None or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DataError(f"{info.name[:200]!r} at byte {position:,} is not a plain file KEY.jpg or KEY.json")
        start = position + _BLOCK
        if not 0 <= info.size <= length - start:
            raise DataError(f"{info.name} at byte {position:,} has {info.size:,} bytes, more than follow")
        if not _is_fully_parsed(info, header):
            raise DataError(f"{info.name} at byte {position:,} has a damaged header")
        yield Member(name[1], name[2], start, info.size)
        position = start + -(-info.size // _BLOCK) * _BLOCK


def _is_fully_parsed(info: tarfile.TarInfo, header: bytes) -> bool:
    """Whether a header contains nothing but what was parsed: another reader might interpret the rest."""
    try:
        return info.tobuf(tarfile.USTAR_FORMAT) == header
    except ValueError:  # a number that does not fit into such a header
        return False
