import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records


@pytest.fixture
def root(draw):
    people = [0, 1, 2, 3, 45, 872]
    return draw([*(f"VIPeR/cam_a/{p:03d}_0.bmp" for p in people), *(f"VIPeR/cam_b/{p:03d}_90.bmp" for p in people)])


@pytest.mark.parametrize("inside", ["", "VIPeR"])
def test_half(root, inside):
    records = read_records("viper", root / inside, {"counts": "any"})
    people = {split: {one.pid for one in records if one.split == split} for split in ("train", "query", "gallery")}
    assert people["query"] == people["gallery"]
    assert people["train"] | people["query"] == {0, 1, 2, 3, 45, 872}
    assert len(people["train"]) == len(people["query"]) == 3
    assert {(one.split, one.camid) for one in records} == {("train", 1), ("train", 2), ("query", 1), ("gallery", 2)}


def test_the_seed_draws_the_half(root):
    halves = {
        tuple(record.split for record in read_records("viper", root, {"counts": "any", "seed": str(seed)}))
        for seed in range(5)
    }
    assert len(halves) > 1


def test_all_train(root):
    records = read_records("viper", root, {"counts": "any", "split": "all"})
    assert {one.split for one in records} == {"train"}
    assert {one.camid for one in records if one.key.startswith("cam_b")} == {2}


def test_an_incomplete_set_is_refused(root):
    with pytest.raises(DataError, match=r"images 12 \(expected 1,264\), identities 6 \(expected 632\)"):
        read_records("viper", root, {})
