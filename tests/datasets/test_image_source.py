"""Images that a person points at: which are taken, as which cameras, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.noise_datasets import Drawn

from embae.datasets.errors import DataError
from embae.datasets.image_source import footage


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """Two cameras with two images each, in a sub-folder; one camera bears the name of a split."""
    for number, name in enumerate(("door/1", "door/2", "gallery/1", "gallery/2")):
        path = tmp_path / "my station" / name / "a.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(Drawn(number, 0).read())
    return tmp_path / "my station"


def test_sub_folders_are_cameras_and_nobody_is_labelled(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = footage(str(station), keep=station.parent / "kept")
    assert (index.name, len(index), index.count("train")) == ("my_station", 4, 4)
    assert index.camera_names == {0: "door", 1: "gallery"}
    assert index.camid.tolist() == [0, 0, 1, 1] and not index.labelled.any()
    assert "cameras 0 = door, 1 = gallery" in capsys.readouterr().err
    again = footage(str(index.root), keep=station.parent / "kept")  # sharded: opened as it is
    assert again.root == index.root and again.camera_names == index.camera_names


def test_a_pattern_says_what_is_what(station: Path) -> None:
    index = footage(str(station), pattern=r"/(?P<camid>\d)/", name="walk", keep=station.parent / "kept")
    assert (index.name, index.camera_names) == ("walk", {1: "1", 2: "2"})
    assert (index.count("train"), index.count("gallery")) == (2, 2)  # as `embae shard folder` reads them


def test_a_pattern_of_the_shell_takes_some(station: Path) -> None:
    index = footage(f"{station}/*/1/*.jpg", keep=station.parent / "kept")
    assert len(index) == 2 and index.camera_names == {0: "door", 1: "gallery"}
    flat = footage(f"{station}/door/1", keep=station.parent / "kept")
    assert (flat.name, len(flat), flat.camera_names) == ("1", 1, {})


def test_files_that_have_changed_are_sharded_again(station: Path) -> None:
    before = footage(str(station), keep=station.parent / "kept")
    assert footage(str(station), keep=station.parent / "kept").root == before.root
    path = station / "door" / "1" / "a.jpg"
    path.write_bytes(Drawn(77, 0).read())
    os.utime(path, ns=(1, 1))
    after = footage(str(station), keep=station.parent / "kept")
    assert after.root != before.root and np.count_nonzero(after.crc32 != before.crc32) == 1


def test_what_cannot_be_decoded_is_named_or_left_out(station: Path) -> None:
    (station / "door" / "2" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"door/2/a\.jpg: not an image"):
        footage(str(station), keep=station.parent / "kept")
    assert len(footage(str(station), keep=station.parent / "kept", skip_bad=True)) == 3


@pytest.mark.parametrize("where, options, said", [
    ("none", {}, "none: no such folder"),
    ("my station/*/9/*.jpg", {}, "no image below my station matches"),
    ("my station", {"pattern": "(?P<who>.)"}, "unknown group 'who'"),
    ("my station", {"name": "../x"}, "dataset name"),
    ("kept", {}, "holds the datasets my_station; name one of them"),
    ("kept/my_station", {"pattern": "x"}, "is sharded already, as my_station; --pattern is for"),
    ("kept/my_station", {"name": "other"}, "is sharded already, as my_station; --name is for"),
])  # fmt: skip
def test_what_is_refused(
    station: Path, monkeypatch: pytest.MonkeyPatch, where: str, options: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(station.parent)
    index = footage("my station", keep=Path("elsewhere"))
    Path("kept").symlink_to(Path(index.root).parent)
    with pytest.raises(DataError) as refused:
        footage(where, keep=Path("elsewhere"), **options)  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_folders_below_those_of_cameras_are_reported(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    footage(str(station), keep=station.parent / "kept")
    said = capsys.readouterr().err
    assert "images in deeper folders (door/1, door/2, gallery/1, …) as images of these cameras" in said
    pattern = said.split("--pattern '")[1].split("'")[0]  # as it is recommended
    index = footage(str(station), pattern=pattern, keep=station.parent / "kept")
    assert list(index.camera_names.values()) == ["door/1", "door/2", "gallery/1", "gallery/2"]
    assert "sub-folders" not in capsys.readouterr().err
    (station / "door" / "1" / "a.jpg").rename(station / "door" / "a.jpg")
    footage(str(station / "door" / "2"), keep=station.parent / "kept")
    assert "sub-folders" not in capsys.readouterr().err


def test_what_is_sharded_from_a_list_or_by_a_pattern_has_names_too(station: Path) -> None:
    from embae.datasets.readers.read import read_records
    from embae.datasets.sharding.options import ShardOptions
    from embae.datasets.sharding.write_shards import write_shards

    records = read_records("folder", station, {"pattern": "^(?P<camid>[^/]+)/"})
    index = write_shards(
        "walk", records, station.parent / "kept", source={"reader": "folder"}, options=ShardOptions(workers=1)
    )
    assert index.camera_names == {0: "door", 1: "gallery"}
    (station / "list.csv").write_text("path,camid\ndoor/1/a.jpg,b\ndoor/2/a.jpg,a\n")
    records = read_records("csv", station / "list.csv", {})
    listed = write_shards(
        "list", records, station.parent / "kept", source={"reader": "csv"}, options=ShardOptions(workers=1)
    )
    assert listed.camera_names == {0: "a", 1: "b"} and listed.camid.tolist() == [0, 1]
