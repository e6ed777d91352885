"""A walk through a tar: ours is read as tarfile reads it, and what a shard does not hold is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from embae.datasets.errors import DataError
from embae.datasets.files.tar import read_members
from embae.datasets.index.arrow_index import Index


def test_the_shards_of_ours_are_read_as_tarfile_reads_them(originals: Index) -> None:
    for name in originals.shards:
        with tarfile.open(originals.root / name) as tar:
            wanted = [(member.name, member.offset_data, member.size) for member in tar]
        with (originals.root / name).open("rb") as file:
            found = [(f"{one.key}.{one.extension}", one.offset, one.size) for one in read_members(file)]
        assert found == wanted and found


def plain(name: str, size: int = 3) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = size
    return info, b"abc"


def link(kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo("k1.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


NAMES = ["/etc/passwd", "../k1.jpg", "a/../k1.jpg", "a/k1.jpg", "pipe:touch gone", "k1.jpg.json", "k1.py", ".jpg",
         "k1\n.jpg", "ké.jpg", "k" * 96 + ".jpg", "k" * 300 + ".jpg"]  # fmt: skip
ODD: dict[str, Callable[[], tuple[tarfile.TarInfo, bytes]]] = {
    **{repr(name)[:20]: (lambda name=name: plain(name)) for name in NAMES},  # type: ignore[misc]
    **{f"type {kind!r}": (lambda kind=kind: link(kind)) for kind in (  # type: ignore[misc]
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_other_members_are_refused(tmp_path: Path, odd: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(plain("k0.jpg")[0], io.BytesIO(b"abc"))
        info, data = ODD[odd]()
        tar.addfile(info, io.BytesIO(data))
    with (tmp_path / "x.tar").open("rb") as file, pytest.raises(DataError, match="at byte 1,024 "):
        list(read_members(file))


@pytest.mark.parametrize("size", [-1, -1024, 2**40, 2**63, 4])
def test_sizes_that_cannot_be(tmp_path: Path, size: int) -> None:
    """A negative one would send other readers round for ever."""
    info = tarfile.TarInfo("k0.jpg")
    info.size = size
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"abc")
    with (tmp_path / "x.tar").open("rb") as file, pytest.raises(DataError, match=r"k0\.jpg at byte 0 "):
        list(read_members(file))


def test_a_tar_that_ends_early_and_one_that_is_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(plain("k0.jpg")[0], io.BytesIO(b"abc"))
    for length, message in ((1024, "no end mark"), (514, "more than follow"), (100, "truncated header"), (0, "no end")):
        (tmp_path / "y.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:length])
        with (tmp_path / "y.tar").open("rb") as file, pytest.raises(DataError, match=message):
            list(read_members(file))
    (tmp_path / "y.tar").write_bytes(b"x" * 5000)
    with (tmp_path / "y.tar").open("rb") as file, pytest.raises(DataError, match="at byte 0"):
        list(read_members(file))
