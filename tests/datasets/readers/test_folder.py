import os

import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records

BOTH = {"pattern": r"(?P<pid>[^/]+)/(?P<camid>[^/]+)_\d+\.\w+$"}


def test_without_a_pattern_images_are_unlabelled(draw):
    records = read_records(
        "folder", draw(["train/b.jpg", "query/a.png", "gallery/x/y.bmp", "other/c.jpg", "d.jpg", "query.jpg"]), {}
    )
    assert [(one.key, one.split, one.pid, one.camid, one.role) for one in records] == [
        ("d", "train", None, 0, "person"), ("gallery_x_y", "gallery", None, 0, "person"),
        ("other_c", "train", None, 0, "person"), ("query", "train", None, 0, "person"),
        ("query_a", "query", None, 0, "person"), ("train_b", "train", None, 0, "person"),
    ]  # fmt: skip


def test_numbers_stay_as_they_are(draw):
    records = read_records("folder", draw(["query/0007/3_1.jpg", "gallery/7/-2_1.jpg", "12/3_1.jpg"]), BOTH)
    assert [(one.pid, one.camid, one.split) for one in records] == [
        (12, 3, "train"), (7, -2, "gallery"), (7, 3, "query"),
    ]  # fmt: skip


def test_names_are_numbered_in_sorted_order(draw):
    records = read_records("folder", draw(["zoe/roof_1.jpg", "anna/door_1.jpg", "query/10/door_1.jpg"]), BOTH)
    assert {one.image.path.parent.name: (one.pid, one.camid) for one in records} == {
        "10": (0, 0), "anna": (1, 0), "zoe": (2, 1),
    }  # fmt: skip


def test_numbers_too_long_for_the_index_are_names(draw):
    records = read_records("folder", draw([f"{10**19}/1_1.jpg", "5/1_1.jpg"]), BOTH)
    assert [one.pid for one in records] == [0, 1]


def test_either_group_alone(draw):
    root = draw(["3/a.jpg"])
    assert [(one.pid, one.camid) for one in read_records("folder", root, {"pattern": r"^(?P<pid>\d)"})] == [(3, 0)]
    assert [(one.pid, one.camid) for one in read_records("folder", root, {"pattern": r"^(?P<camid>\d)"})] == [(None, 3)]


def test_a_pid_that_takes_no_part_is_unlabelled(draw):
    records = read_records("folder", draw(["a/1.jpg", "p5/1.jpg"]), {"pattern": r"^(p(?P<pid>\d))?"})
    assert [one.pid for one in records] == [None, 5]


def test_cameras_are_for_all_or_none(draw):
    root = draw(["x.jpg", "c2/x.jpg"])
    with pytest.raises(DataError, match=r"images have no camid while others have one: x.jpg"):
        read_records("folder", root, {"pattern": r"^(c(?P<camid>\d))?"})


def test_roles(draw):
    root = draw(["-1/1_1.jpg", "0000/1_1.jpg", "0001/1_1.jpg"])
    records = read_records("folder", root, BOTH | {"junk_pid": "-1", "distractor_pid": "0000"})
    assert [(one.pid, one.role) for one in records] == [(-1, "junk"), (0, "distractor"), (1, "person")]
    assert {one.role for one in read_records("folder", root, BOTH)} == {"person"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"\d+", "found no named group; expected"),
        (r"(?P<pdi>\d)", "unknown group 'pdi'; did you mean pid?"),
        (r"(?P<pid>\d)", "images are not named as pattern=.* expects: a.jpg \\(1 in all\\); correct the pattern"),
    ],
)
def test_patterns_that_do_not_do(draw, pattern, message):
    with pytest.raises(DataError, match=message):
        read_records("folder", draw(["a.jpg", "1.jpg"]), {"pattern": pattern})


TREES = {
    "MARS": (["0001/0001C1T0002F003.jpg", "0002/0002C6T0001F001.jpg"], r"/(?P<pid>\d{4})C(?P<camid>\d)T",
             [(1, 1), (2, 6)]),
    "iLIDS-VID": (["cam1/person001/f7.png", "cam2/person001/f1.png"], r"cam(?P<camid>\d)/person(?P<pid>\d+)/",
                  [(1, 1), (1, 2)]),
    "a tracklet is a person": (["door/track-1/1.jpg", "door/track-2/1.jpg", "gate/track-1/1.jpg"],
                               r"^(?P<pid>(?P<camid>[^/]+)/[^/]+)/", [(0, 0), (1, 0), (2, 1)]),
    "cameras by folder": (["door/2024/05/1.jpg", "gate/1.jpg"], r"^(?P<camid>[^/]+)/", [(None, 0), (None, 1)]),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_tracklets_and_cameras(draw, name):
    paths, pattern, labels = TREES[name]
    assert [(one.pid, one.camid) for one in read_records("folder", draw(paths), {"pattern": pattern})] == labels


def test_listing_neither_opens_nor_asks_for_the_images(draw, monkeypatch):
    root = draw([f"a/{number}.jpg" for number in range(50)])
    asked = []
    for name in ("stat", "lstat", "open"):
        there = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *rest, there=there, **more: asked.append(path) or
                            there(path, *rest, **more))
    assert len(read_records("folder", root, {})) == 50
    assert not [path for path in asked if str(path).endswith(".jpg")]
