"""Images that a person points at: which are taken, as which cameras, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from small import Drawn

from embae.datasets.errors import DataError
from embae.trainer.footage import cameras, footage


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
    assert cameras(index) == {"door": 0, "gallery": 1}
    assert index.camid.tolist() == [0, 0, 1, 1] and not index.labelled.any()
    assert "cameras 0 = door, 1 = gallery" in capsys.readouterr().err
    again = footage(str(index.root), keep=station.parent / "kept")  # sharded: opened as it is
    assert again.root == index.root and cameras(again) == cameras(index)


def test_a_pattern_says_what_is_what(station: Path) -> None:
    index = footage(str(station), pattern=r"/(?P<camid>\d)/", name="walk", keep=station.parent / "kept")
    assert (index.name, cameras(index)) == ("walk", {"1": 1, "2": 2})
    assert (index.count("train"), index.count("gallery")) == (2, 2)  # as `embae shard folder` reads them


def test_a_pattern_of_the_shell_takes_some(station: Path) -> None:
    index = footage(f"{station}/*/1/*.jpg", keep=station.parent / "kept")
    assert len(index) == 2 and cameras(index) == {"door": 0, "gallery": 1}
    flat = footage(f"{station}/door/1", keep=station.parent / "kept")
    assert (flat.name, len(flat), cameras(flat)) == ("1", 1, {"0": 0})


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
    ("my station/*/9/*.jpg", {}, "no image below my station is named so"),
    ("my station", {"pattern": "(?P<who>.)"}, "unknown group 'who'"),
    ("my station", {"name": "../x"}, "dataset name"),
    ("kept", {}, "holds the datasets my_station; name one of them"),
    ("kept/my_station", {"pattern": "x"}, "is sharded already, as my_station; pattern goes with"),
    ("kept/my_station", {"name": "other"}, "is sharded already, as my_station; name goes with"),
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
