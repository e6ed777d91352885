import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records

VIEWS = [f"0{camera}_{orientation}.png" for camera in (1, 2) for orientation in (1, 8)]


@pytest.fixture
def subset(draw):
    people = {"train": ["001", "003", "007"], "val/all_imgs": ["004"], "val/query": ["004"], "val/gallery": ["004"]}
    return draw(f"{folder}/{pid}/{view}" for folder, pids in people.items() for pid in pids for view in VIEWS)


def test_half_of_the_subset(subset):
    records = read_records("pku-reid", subset, {"counts": "any"})
    assert len(records) == 16  # val/query and val/gallery repeat val/all_imgs
    people = {split: {one.pid for one in records if one.split == split} for split in ("train", "query", "gallery")}
    assert people["query"] == people["gallery"]
    assert len(people["train"]) == len(people["query"]) == 2
    assert people["train"] | people["query"] == {1, 3, 4, 7}
    assert {one.camid for one in records if one.split == "query"} == {1}
    assert {one.camid for one in records if one.split == "gallery"} == {2}


def test_the_seed_draws_the_half(subset):
    train = [
        {record.pid for record in read_records("pku-reid", subset, {"counts": "any", "seed": str(seed)})
         if record.split == "train"}
        for seed in range(8)
    ]
    assert any(pids != train[0] for pids in train)


def test_the_division_of_the_subset(subset):
    records = read_records("pku-reid", subset, {"counts": "any", "split": "official"})
    assert {(one.pid, one.split, one.camid) for one in records} == {
        *((pid, "train", camid) for pid in (1, 3, 7) for camid in (1, 2)), (4, "query", 1), (4, "gallery", 2),
    }  # fmt: skip
    assert records[0].key == "train_001_01_1"


def test_the_release(draw):
    root = draw(f"{pid}_{view}" for pid in ("001", "114") for view in VIEWS)
    records = read_records("pku-reid", root, {"counts": "any", "split": "all"})
    assert [(one.pid, one.camid, one.split) for one in records] == [
        (pid, camid, "train") for pid in (1, 114) for camid in (1, 1, 2, 2)
    ]
    with pytest.raises(DataError, match=r"needs the folders train and val/all_imgs.*; divide .*split=half"):
        read_records("pku-reid", root, {"counts": "any", "split": "official"})
    with pytest.raises(DataError, match=r"identities 2 \(expected 114\)"):
        read_records("pku-reid", root, {})


def test_an_incomplete_subset_is_refused(subset):
    with pytest.raises(DataError, match=r"images 16 \(expected 1,184\), identities 4 \(expected 74\)"):
        read_records("pku-reid", subset, {})
