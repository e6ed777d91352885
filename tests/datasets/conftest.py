"""Small datasets: real JPEGs in real shards, and indexes without images for what reads none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.columns import Columns
from embae.datasets.index.records import ROLES, FileImage, Record, Role
from embae.datasets.index.writer import write_index
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

Row = tuple[int | None, int] | tuple[int | None, int, Role]


@pytest.fixture
def tabled(tmp_path: Path) -> Callable[[str, Sequence[Row]], Index]:
    """``tabled(name, [(pid, camid), …])``: an index of training images whose shard is one hole."""
    def make(name: str, rows: Sequence[Row]) -> Index:
        folder = tmp_path / name
        folder.mkdir()
        rows = sorted(rows, key=lambda row: (row[0] is None, row[0] or 0, row[1]))
        count = len(rows)
        with (folder / "train-000000.tar").open("wb") as file:
            file.truncate(10 * count)
        numbers = np.arange(count)
        write_index(folder, name, Columns(
            keys=pa.array([f"{number:06d}" for number in numbers]), split=np.zeros(count, np.int8),
            pid=np.array([row[0] or 0 for row in rows]), labelled=np.array([row[0] is not None for row in rows]),
            camid=np.array([row[1] for row in rows], np.int32),
            role=np.array([ROLES.index(row[2] if len(row) == 3 else "person") for row in rows], np.int8),
            shard=np.zeros(count, np.int32), offset=10 * numbers, size=np.full(count, 10, np.int32),
            crc32=np.random.default_rng(len(name)).integers(2**32, size=count, dtype=np.uint32),
            height=np.full(count, 8, np.int32), width=np.full(count, 4, np.int32), shards=["train-000000.tar"],
        ), source={})
        return Index.open(folder)
    return make


def photograph(path: Path, seed: int, height: int, width: int) -> None:
    """A JPEG with colours, edges and some grain, chroma subsampled as cameras do."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (6, 3, 3), dtype=np.uint8))
    pixels = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    pixels[height // 3:height // 2, width // 4:width // 2] = rng.integers(0, 256, 3)
    pixels += rng.normal(0, 4, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """32 training images of 8 people by 2 cameras, from 80×40 to 122×61; one file is there as i29, i30 and i31."""
    folder = tmp_path_factory.mktemp("photographs")
    records = []
    for number in range(32):
        path = folder / f"{number:02d}.jpg"
        photograph(path, min(number, 30), 80 + 6 * (number % 8), 40 + 3 * (number % 8))
        records.append(Record(f"i{number:02d}", "train", number // 4, number % 2, FileImage(path)))
    records[29] = Record("i29", "train", 7, 1, FileImage(folder / "30.jpg"))
    records[31] = Record("i31", "train", 7, 0, FileImage(folder / "30.jpg"))
    return records


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Index]:
    """``shard(records, size=…)``: a dataset in a folder of its own."""
    def make(records: Sequence[Record], **options: Any) -> Index:
        return write_shards("set", records, tmp_path_factory.mktemp("shards"), source={},
                            options=ShardOptions(workers=1, images_per_shard=12, **options))
    return make


@pytest.fixture(scope="session")
def originals(photographs: list[Record], shard: Callable[..., Index]) -> Index:
    """The photographs as they are."""
    return shard(photographs)


@pytest.fixture(scope="session")
def stored(photographs: list[Record], shard: Callable[..., Index]) -> Index:
    """The photographs at 72×36, which is 9/8 of 64×32."""
    return shard(photographs, size=(72, 36))
