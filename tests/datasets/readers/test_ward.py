import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records


def test_the_usual_naming_at_the_official_size(tmp_path):
    for person in range(1, 71):
        for camera in (1, 2, 3):
            (tmp_path / f"{person:04d}{camera:04d}0001.png").touch()
    records = read_records("ward", tmp_path, {})
    train = {one.pid for one in records if one.split == "train"}
    query = {one.pid for one in records if one.split == "query"}
    assert (len(train), len(query), train | query) == (35, 35, set(range(1, 71)))
    assert {(one.split, one.camid) for one in records if one.split != "train"} == {
        ("query", 1), ("gallery", 2), ("gallery", 3),
    }  # fmt: skip
    assert {one.split for one in read_records("ward", tmp_path, {"split": "all"})} == {"train"}


def test_another_naming(draw):
    root = draw([f"camera{camera}/p{person}-7.png" for camera in "ab" for person in (1, 2)])
    options = {"pattern": r"camera(?P<camid>\w)/p(?P<pid>\d+)", "split": "all"}
    records = read_records("ward", root, options | {"counts": "any"})
    assert [(one.pid, one.camid) for one in records] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    with pytest.raises(
        DataError, match=r"cameras 2 \(expected 3\), identities 2|identities 2 \(expected 70\), cameras 2"
    ):
        read_records("ward", root, options)


def test_a_naming_that_does_not_match(draw):
    with pytest.raises(
        DataError, match=r"images are not named as pattern=.* expects: holiday.png \(1 in all\); correct the pattern"
    ):
        read_records("ward", draw(["holiday.png"]), {})
