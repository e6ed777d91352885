"""Shards whose bytes are damaged under a right index, or whose index was made for damaged bytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.damaged_dataset import copied, kept, with_column
from helpers.fuzzing import damaged, edits, inputs, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st

from embae.datasets.errors import DataError
from embae.datasets.images.jpeg import check_jpeg, declared_size
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.inspection.verification import verify
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import open_loader
from embae.datasets.sampling.sequential_sampler import SequentialSampler
from embae.datasets.sampling.view import View

SHARD = "train-000000.tar"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return copied(tmp_path_factory.mktemp("shards"))


class Images(list[bytes]):
    """Images as they were, named briefly where a test fails."""

    def __repr__(self) -> str:
        return f"{len(self)} images"


@pytest.fixture(scope="module")
def images(index: Index) -> Images:
    with ShardReader(index) as reader:
        return Images(reader.read(row) for row in range(len(index)))


def written(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


@inputs(60)
@given(changes=edits)
def test_damaged_tars(index: Index, images: Images, changes: list[tuple[str, int, int]]) -> None:
    path = index.root / SHARD
    data = path.read_bytes()
    changed = damaged(data, changes)
    rows = range(*index.rows("train").indices(len(index)))  # each with its header before it
    pieces = [slice(int(index.offset[row]) - 512, int(index.offset[row] + index.size[row])) for row in rows]
    matters = any(changed[piece] != data[piece] for piece in pieces)
    with kept(path):
        written(path, changed)
        with works_or_refuses(path, index.root, only=(DataError,)):
            opened = Index.open(index.root)
            with ShardReader(opened) as reader:
                for row in range(len(opened)):  # never other bytes, however they got there
                    with works_or_refuses(f"(row {row})", only=(DataError,)):
                        assert reader.read(row) == images[row]
        with works_or_refuses(path, index.root, only=(DataError,)) as refusals:
            if problems := verify(Index.open(index.root)):
                raise DataError("; ".join(problems))
        assert refusals or not matters


def load(index: Index, rows: Sequence[int], loader: str) -> torch.Tensor:
    view = View([index], "train")
    work = Work(SequentialSampler(view, batch=4, rows=np.array(rows)), ImageSpec(32, 16), Augment(), seed=0, stage="s",
                start=0, stop=1)
    opened = open_loader(work, loader=loader, device=torch.device("cpu"), threads=1)  # type: ignore[arg-type]
    try:
        (batch,) = opened
        return batch.inputs
    finally:
        opened.close()


@inputs(40)
@given(changes=edits, at_start=st.booleans())
def test_images_that_were_damaged_before_they_were_indexed(
    index: Index, images: Images, changes: list[tuple[str, int, int]], at_start: bool
) -> None:
    """Their checksums are right, so only what they declare, and decoding them, tells."""
    path, row = index.root / SHARD, 1
    start, size = int(index.offset[row]), int(index.size[row])
    made = damaged(images[row], changes, range(1, 700) if at_start else None)[:size].ljust(size, b"\0")
    crc = np.array(index.crc32)
    crc[row] = zlib.crc32(made)
    with kept(path, index.root / "index.arrow"):
        data = path.read_bytes()
        written(path, data[:start] + made + data[start + size :])
        with_column(index.root, "crc32", crc)
        opened = Index.open(index.root)
        with works_or_refuses("(row 1)", only=(DataError,)):
            with ShardReader(opened) as reader:
                assert declared_size(reader.read(row)) == (int(index.height[row]), int(index.width[row]))
            check_jpeg(made, "(row 1)")
        with works_or_refuses("(row 1)", only=(DataError,)):
            assert load(opened, [0, 1, 2, 3], "webdataset").shape == (4, 3, 32, 16)


@inputs(150)
@given(data=st.binary(max_size=300), changes=edits, head=st.booleans())
def test_headers(images: Images, data: bytes, changes: list[tuple[str, int, int]], head: bool) -> None:
    made = (b"\xff\xd8" + data) if head else damaged(images[0][:700], changes)
    with works_or_refuses("that image", only=(DataError,)):
        declared = declared_size(made)
        assert declared is None or all(0 <= side < 65536 for side in declared)
        if head:
            found = check_jpeg(made, "that image")
            assert declared is not None and found[0] * found[1] > 0


def test_dali_is_handed_nothing_that_fails_its_checksum(index: Index, images: Images) -> None:
    """Undecodable bytes end its process in about half of the tries, so this would not pass by luck."""
    path = index.root / SHARD
    with kept(path):
        data = bytearray(path.read_bytes())
        for row in range(4):
            start = int(index.offset[row])
            data[start : start + 200] = bytes(200)
        written(path, bytes(data))
        for _ in range(5):
            with pytest.raises(DataError, match=r"\(row 0\): checksum"):
                load(Index.open(index.root), [0, 1, 2, 3], "dali")


def test_dali_is_handed_nothing_but_jpegs(index: Index, images: Images) -> None:
    """Also where the checksum is right: of a PNG, or of a JPEG that declares another size than the index says."""
    path, frame = index.root / SHARD, images[1].index(b"\xff\xc0") + 5
    for at, new in ((0, b"\x89PNG\r\n\x1a\n"), (frame, b"\xff\xdc\xff\xdc")):
        with kept(path, index.root / "index.arrow"):
            data = bytearray(path.read_bytes())
            start, size = int(index.offset[1]), int(index.size[1])
            data[start + at : start + at + len(new)] = new
            written(path, bytes(data))
            crc = np.array(index.crc32)
            crc[1] = zlib.crc32(data[start : start + size])
            with_column(index.root, "crc32", crc)
            with pytest.raises(DataError, match=r"\(row 1\): (not a JPEG|has \(height, width\))"):
                load(Index.open(index.root), [0, 1, 2, 3], "dali")


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
def test_a_jpeg_that_ends_early_is_named(index: Index, images: Images, loader: str) -> None:
    """It declares what the index says and its checksum is right: the decoder fails, and the image is told by name."""
    path = index.root / SHARD
    with kept(path, index.root / "index.arrow"):
        data = bytearray(path.read_bytes())
        start, size = int(index.offset[1]), int(index.size[1])
        data[start + size // 2 : start + size] = bytes(size - size // 2)
        written(path, bytes(data))
        crc = np.array(index.crc32)
        crc[1] = zlib.crc32(data[start : start + size])
        with_column(index.root, "crc32", crc)
        with pytest.raises(DataError, match=rf"{SHARD}: image .* \(row 1\): (a JPEG cut short|a damaged JPEG)"):
            load(Index.open(index.root), [0, 1, 2, 3], loader)
