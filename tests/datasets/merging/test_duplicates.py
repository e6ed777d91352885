"""Near-duplicates: the hash of real JPEGs, the search against a comparison of all pairs, the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import DUPLICATES
from embae.datasets.index.records import FileImage, Record
from embae.datasets.merging.duplicates import COLUMNS, DISTANCE, find_duplicates, nearest
from embae.datasets.merging.merge import merge
from embae.datasets.merging.perceptual_hash import hashes, image_hash
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards


def again(path: Path, quality: int, size: tuple[int, int] | None = None) -> bytes:
    """An image encoded anew, at another size (height, width) if one is given."""
    with Image.open(path) as image:
        out = io.BytesIO()
        image = image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image
        image.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """29 images, 160×80, with detail at all the frequencies that people's clothes have."""
    folder, records = tmp_path_factory.mktemp("people"), []
    for number in range(29):
        colours = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(colours).resize((80, 160), Image.Resampling.BICUBIC).save(path, quality=95)
        records.append(Record(f"i{number:02d}", "train", number // 2, 0, FileImage(path)))
    return records


def bits(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("size", [None, (128, 64), (256, 128)])
def test_an_image_encoded_anew_is_near(people: list[Record], quality: int, size: tuple[int, int] | None) -> None:
    images = [record.image for record in people[::4]]
    before = [image_hash(image.read(), "x") for image in images]
    after = [image_hash(again(image.path, quality, size), "x") for image in images]  # type: ignore[attr-defined]
    assert max(map(bits, before, after)) <= DISTANCE
    apart = [bits(one, other) for number, one in enumerate(before) for other in before[:number]]
    assert min(apart) > 3 * DISTANCE


def test_images_without_any_structure_are_alike() -> None:
    flat = []
    for level in (0, 128, 255):
        out = io.BytesIO()
        Image.new("RGB", (64, 128), (level,) * 3).save(out, "JPEG")
        flat.append(image_hash(out.getvalue(), "x"))
    assert not np.any(flat)


def test_what_cannot_be_decoded_is_named() -> None:
    with pytest.raises(DataError, match="shard: image 3: cannot be decoded"):
        image_hash(b"\xff\xd8 no", "shard: image 3")


def every_pair(found: np.ndarray, group: np.ndarray, within: int) -> set[tuple[int, int, int]]:
    """The same by comparing all."""
    said = set()
    for row in range(len(found)):
        distance = np.bitwise_count(found ^ found[row]).sum(1)
        for other_group in np.unique(group[group >> 1 != group[row] >> 1]):
            there = np.flatnonzero(group == other_group)
            best = there[np.argmin(distance[there])]
            if distance[best] <= within:
                said.add((row, int(best), int(distance[best])))
    return said


@pytest.mark.parametrize("within", [0, 5, DISTANCE, 20])
def test_the_search_finds_what_comparing_all_finds(within: int) -> None:
    """Hashes at every distance around the limit, many equal, in three datasets with training and test images."""
    rng = np.random.default_rng(within)
    found = rng.integers(0, 2**64, (12, 4), dtype=np.uint64)[rng.integers(0, 12, 600)]
    raw = np.unpackbits(found.view(np.uint8), axis=1)
    for row in range(0, 600, 2):
        raw[row, rng.choice(256, rng.integers(0, within + 3), replace=False)] ^= 1
    found = np.packbits(raw, axis=1).view(np.uint64)
    group = rng.integers(0, 6, 600).astype(np.int32)
    image, other, distance = nearest(found, group, within)
    said = set(zip(image.tolist(), other.tolist(), distance.tolist(), strict=True))
    assert len(said) == len(image) and said == every_pair(found, group, within)
    assert len(said) > 300 and (within == 0 or {found[2] for found in said} >= set(range(within + 1)))


@pytest.fixture(scope="module")
def overlapping(people: list[Record], tmp_path_factory: pytest.TempPathFactory) -> list[Index]:
    """Two datasets: ``b`` trains on 3 of ``a``'s training images encoded anew, on one that ``a`` tests on, and tests on
    2 that ``a`` trains on; the rest is its own."""
    root = tmp_path_factory.mktemp("overlapping")
    a = [replace(record, split="query") if number == 20 else record for number, record in enumerate(people[:21])]
    b = []
    for number, split in ((0, "train"), (1, "train"), (2, "train"), (20, "train"), (8, "gallery"), (9, "query")):
        path = root / f"{number}.jpg"
        path.write_bytes(again(people[number].image.path, 70, (96, 48)))  # type: ignore[attr-defined]
        b.append(Record(f"b{number}", split, number, 0, FileImage(path)))  # type: ignore[arg-type]
    b += [replace(record, key=f"own{number}") for number, record in enumerate(people[21:26])]
    return [
        write_shards(name, records, root, source={}, options=ShardOptions(workers=1))
        for name, records in (("a", a), ("b", b))
    ]


def test_hashes_know_no_number_of_processes(overlapping: list[Index]) -> None:
    one, two = (hashes(overlapping, workers) for workers in (1, 2))
    assert one.shape == (sum(map(len, overlapping)), 4) and np.array_equal(one, two)


def test_the_report_says_leaks_first(overlapping: list[Index], tmp_path: Path) -> None:
    merged, found = merge([index.root for index in overlapping], tmp_path / "merged", {})
    assert found is not None
    assert [str(overlap) for overlap in found.overlaps] == [
        "test images in training: 2 images that b tests on (query, gallery) are among the training images of a "
        "(2 images there)",
        "test images in training: 1 image that a tests on (query, gallery) is among the training images of b "
        "(1 image there)",
        "3 training images of a are among the training images of b (3 images there)",
    ]
    lines = list(csv.reader((merged.root / DUPLICATES).read_text().splitlines()))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 7
    assert {(line[0], line[3]) for line in lines[1:]} == {("a", "b")}
    assert [{line[1], line[4]} == {"train"} for line in lines[1:]] == [False] * 3 + [True] * 3
    assert {(line[2], line[5]) for line in lines[1:]} == {
        (overlapping[0].key(row), f"b{number}") for row in range(len(overlapping[0]))
        for number in (0, 1, 2, 8, 9, 20) if overlapping[0].key(row) == f"i{number:02d}"}
    assert all(0 <= int(line[6]) <= DISTANCE for line in lines[1:])


def test_nothing_in_common(overlapping: list[Index], people: list[Record], shard: Callable[..., Index]) -> None:
    found = find_duplicates([overlapping[0], shard(people[26:29])], workers=1)
    assert not found.overlaps and not len(found.pairs)
