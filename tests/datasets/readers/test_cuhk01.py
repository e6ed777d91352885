import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers import cuhk01
from embae.datasets.readers.read import read_records


def names(people):
    return [f"campus/{person:04d}{image:03d}.png" for person in range(1, people + 1) for image in range(1, 5)]


@pytest.mark.parametrize("inside", ["", "campus"])
def test_all_train(draw, inside):
    records = read_records("cuhk01", draw(names(2)) / inside, {"split": "all", "counts": "any"})
    assert [(one.split, one.pid, one.camid) for one in records] == [
        ("train", pid, camid) for pid in (1, 2) for camid in (1, 1, 2, 2)
    ]
    assert records[0].key == "0001001"


def test_the_lowest_pids_train(tmp_path):
    (tmp_path / "campus").mkdir()
    for name in names(971):
        (tmp_path / name).touch()
    assert summary(read_records("cuhk01", tmp_path, {})) == {
        "train": (485, 1, 485, {1, 2}), "query": (486, 486, 971, {1}), "gallery": (486, 486, 971, {2}),
    }  # fmt: skip
    assert summary(read_records("cuhk01", tmp_path, {"split": "871"})) == {
        "train": (871, 1, 871, {1, 2}), "query": (100, 872, 971, {1}), "gallery": (100, 872, 971, {2}),
    }  # fmt: skip


def summary(records):
    found = {}
    for one in records:
        found.setdefault(one.split, []).append(one)
    return {
        split: (len(pids := {one.pid for one in ones}), min(pids), max(pids), {one.camid for one in ones})
        for split, ones in found.items()
    }


def test_an_incomplete_set_is_refused(draw):
    assert cuhk01.COUNTS["images"] == 4 * cuhk01.COUNTS["identities"]
    with pytest.raises(DataError, match=r"images 4 \(expected 3,884\), identities 1 \(expected 971\)"):
        read_records("cuhk01", draw(names(1)), {})


def test_bad_names(draw):
    with pytest.raises(DataError, match=r"images are not named PPPPIII.png, image 001 to 004: 0001005.png"):
        read_records("cuhk01", draw([*names(1), "campus/0001005.png"]), {"counts": "any"})
