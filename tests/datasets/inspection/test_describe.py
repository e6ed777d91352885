"""Looking at a dataset, and finding what is damaged in it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from embae.datasets.console import progress as progress_module
from embae.datasets.console.progress import progress
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.columns import Columns
from embae.datasets.index.records import FileImage, Record
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.index.writer import write_index
from embae.datasets.inspection.contact_sheet import contact_sheet
from embae.datasets.inspection.describe import describe, format_description
from embae.datasets.inspection.verification import verify
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

COLOURS = ["red", "green", "blue", "orange", "purple"]


@pytest.fixture
def dataset(tmp_path: Path) -> Index:
    """Five identities, each of one colour, by cameras 1 and 3; a distractor and two unlabelled images by camera 3."""
    records = []

    def add(key: str, split: str, pid: int | None, camid: int, colour: str, role: str = "person") -> None:
        path = tmp_path / f"{key}.png"
        Image.new("RGB", (32, 64 + 2 * len(records)), colour).save(path)
        records.append(Record(key, split, pid, camid, FileImage(path), role))  # type: ignore[arg-type]

    for pid, colour in enumerate(COLOURS):
        for shot in range(4):
            split = "train" if pid < 3 else "gallery" if shot else "query"
            add(f"p{pid}-{shot}", split, pid, 1 if shot < 2 else 3, colour)
    add("other", "gallery", 77, 3, "gray", "distractor")
    for number in range(2):
        add(f"u{number}", "train", None, 3, "white")
    out = tmp_path / "out"
    write_shards("five", records, out, source={"reader": "test"}, options=ShardOptions(images_per_shard=8, workers=1))
    with (out / "five" / "dataset.yaml").open("a") as card:
        card.write("licence: CC0\n")  # an owner may add it
    return Index.open(out / "five")


def test_describes(dataset: Index) -> None:
    found = describe(dataset)
    assert {k: found[k] for k in ("name", "images", "identities", "shards", "skipped", "licence", "image")} == {
        "name": "five", "images": 23, "identities": 5, "shards": 4, "skipped": 0, "licence": "CC0", "image": None,
    }  # fmt: skip
    assert found["height"] == {"min": 64, "median": 86, "max": 108}
    assert found["width"] == {"min": 32, "median": 32, "max": 32}
    assert found["splits"]["train"] == {
        "images": 14, "identities": 3, "unlabelled": 2, "roles": {"person": 14, "distractor": 0, "junk": 0},
        "cameras": {1: 6, 3: 8},
    }  # fmt: skip
    assert found["splits"]["gallery"]["roles"]["distractor"] == 1
    assert found["splits"]["gallery"]["identities"] == 2  # a distractor is nobody's identity
    assert found["bytes"] == sum(dataset.size.tolist())
    assert json.loads(json.dumps(found))["images"] == 23


def test_renders_within_a_terminal(dataset: Index) -> None:
    text = format_description(describe(dataset))
    assert max(map(len, text.splitlines())) <= 80
    assert "23 of 5 identities" in text
    assert "height 64, 86, 108" in text
    train = next(line for line in text.splitlines() if line.strip().startswith("train"))
    assert train.split() == ["train", "14", "3", "2", "2", "14", "0", "0"]
    camera = next(line for line in text.splitlines() if line.strip().startswith("3 "))
    assert camera.split() == ["3", "8", "0", "5"]
    assert "…" not in text  # nothing cut off


def test_all_is_well(dataset: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(dataset) == []
    assert "verifying five: 23 of 23 (100 %)" in capsys.readouterr().err


ROW = 9


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_a_flipped_bit_is_found(dataset: Index) -> None:
    key = dataset.key(ROW)
    shard = dataset.root / dataset.shards[dataset.shard[ROW]]
    flip(shard, int(dataset.offset[ROW]) + int(dataset.size[ROW]) // 2)
    message = rf"{shard}: image {key} \(row {ROW}\): checksum .*, expected .*embae inspect --verify"
    with ShardReader(Index.open(dataset.root)) as reader:
        for row in set(range(len(dataset))) - {ROW}:
            reader.read(row)
        with pytest.raises(DataError, match=message):
            reader.read(ROW)
    (problem,) = verify(Index.open(dataset.root))
    assert f"{shard}: image {key} (row {ROW}): checksum" in problem


def shard_of(index: Index) -> Path:
    return index.root / index.shards[index.shard[ROW]]


def in_header(index: Index) -> None:
    flip(shard_of(index), int(index.offset[ROW]) - 512)


def in_sidecar(index: Index) -> None:
    data = shard_of(index).read_bytes()
    position = data.index(b'"camid": ', int(index.offset[ROW]))
    shard_of(index).write_bytes(data[: position + 9] + b"9" + data[position + 10 :])


def renamed(index: Index) -> None:
    with tarfile.open(shard_of(index)) as tar:
        member = next(m for m in tar if m.offset_data == index.offset[ROW])
    member.name = "someone.jpg"
    data = bytearray(shard_of(index).read_bytes())
    data[member.offset_data - 512 : member.offset_data] = member.tobuf(tarfile.USTAR_FORMAT)
    shard_of(index).write_bytes(data)


def shard_swapped(index: Index) -> None:
    """Another dataset's shard of the same name and size."""
    a, b = (index.root / name for name in index.shards[:2])
    longest = max(a.stat().st_size, b.stat().st_size)
    first, second = a.read_bytes().ljust(longest, b"\0"), b.read_bytes().ljust(longest, b"\0")
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (in_header, "the tar ends after .* images, expected .*; the first missing one is {key} (row 9)"),
        (in_sidecar, "image {key} (row 9): {key}.json is missing or says otherwise than the index"),
        (renamed, "image {key} (row 9): the tar has someone.jpg in its place"),
        (shard_swapped, "image {key} (row 9): checksum"),
    ],
)
def test_damaged_shards_are_found(dataset: Index, damage: Callable[[Index], None], message: str) -> None:
    damage(dataset)
    problems = verify(Index.open(dataset.root))
    parts = message.format(key=dataset.key(ROW)).split(".*")
    assert any(str(shard_of(dataset)) in text and all(part in text for part in parts) for text in problems), problems


def columns_of(index: Index) -> Columns:
    return Columns(**{name: getattr(index, name) for name in Columns.__dataclass_fields__})


@pytest.mark.parametrize("name", ["camid", "crc32", "role"])
def test_changed_labels_are_found(dataset: Index, tmp_path: Path, name: str) -> None:
    """Rows that are not those of the fingerprint, though both files carry it."""
    values = getattr(dataset, name).copy()
    values[-1] += 1
    write_index(tmp_path, "five", replace(columns_of(dataset), **{name: values}), source={})
    changed = (tmp_path / "index.arrow").read_bytes()
    fingerprint = yaml.safe_load((tmp_path / "dataset.yaml").read_text())["fingerprint"]
    assert changed.count(fingerprint.encode()) >= 1
    changed = changed.replace(fingerprint.encode(), dataset.fingerprint.encode())
    (dataset.root / "index.arrow").write_bytes(changed)
    problems = verify(Index.open(dataset.root))
    assert any("index.arrow: its rows have the fingerprint" in problem for problem in problems), problems


def test_wrong_sizes_are_found(dataset: Index) -> None:
    content = columns_of(dataset)
    write_index(dataset.root, "five", replace(content, height=content.height + 1), source={})
    problems = verify(Index.open(dataset.root))
    height = int(content.height[ROW])
    wanted = f"(row {ROW}): has (height, width) ({height}, 32), the index says ({height + 1}, 32)"
    assert any(wanted in problem for problem in problems)


def test_wrong_card_is_found(dataset: Index) -> None:
    card = yaml.safe_load((dataset.root / "dataset.yaml").read_text())
    card["counts"]["train"]["identities"] += 1
    card["image"] = [64, 32]
    (dataset.root / "dataset.yaml").write_text(yaml.safe_dump(card))
    problems = verify(Index.open(dataset.root))
    assert any("its counts are not those of index.arrow" in problem for problem in problems)
    assert any("image is (64, 32), the rows of index.arrow say None" in problem for problem in problems)


def colour_at(sheet: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(sheet.convert("RGB")).astype(int)[y, x]


def test_contact_sheet_has_a_row_an_identity(dataset: Index, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet(dataset, path, identities=5, per_identity=4)
    sheet = Image.open(path)
    assert sheet.format == "PNG"
    # All five identities, by rising pid, four images each: every cell's middle shows the identity's colour.
    for row, colour in enumerate(COLOURS):
        expected = np.asarray(Image.new("RGB", (1, 1), colour)).astype(int)[0, 0]
        for column in range(4):
            found = colour_at(sheet, 24 + 96 + 98 * column + 44, 24 + 40 + 204 * row + 88)
            assert np.abs(found - expected).max() <= 12, (row, column)
    assert not list(tmp_path.glob("*.tmp"))


def test_contact_sheet_depends_on_its_seed_alone(dataset: Index, tmp_path: Path) -> None:
    sheets = []
    for number, seed in enumerate([0, 0, 1, 2, 3]):
        contact_sheet(dataset, tmp_path / f"{number}.png", seed=seed, identities=2, per_identity=2)
        sheets.append((tmp_path / f"{number}.png").read_bytes())
    assert sheets[0] == sheets[1]
    assert len(set(sheets)) > 2


def test_contact_sheet_of_unlabelled_images_has_a_row_a_camera(tmp_path: Path) -> None:
    records = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 64), COLOURS[number % 3]).save(path)
        records.append(Record(f"k{number}", "train", None, number % 3, FileImage(path)))
    index = write_shards("nobody", records, tmp_path / "out", source={}, options=ShardOptions(workers=1))
    contact_sheet(index, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height == 40 + 3 * 204 + 2 * 24 - 10
    for row in range(3):
        expected = np.asarray(Image.new("RGB", (1, 1), COLOURS[row])).astype(int)[0, 0]
        assert np.abs(colour_at(sheet, 24 + 96 + 44, 24 + 40 + 204 * row + 88) - expected).max() <= 12


def test_contact_sheet_into_no_folder(dataset: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sheet.png: cannot be written"):
        contact_sheet(dataset, tmp_path / "none" / "sheet.png")
    with pytest.raises(DataError, match="at least one row"):
        contact_sheet(dataset, tmp_path / "sheet.png", identities=0)


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress("sharding x", 2000) as advance:
        for _ in range(200):  # 10 images a second for 200 seconds
            now[0] += 1
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sharding x: 200 of 2,000 (10 %), 10/s, 3 min 0 s left"
    assert len(lines) == 10
    assert lines[-1] == "sharding x: 2,000 of 2,000 (100 %), 10/s"
