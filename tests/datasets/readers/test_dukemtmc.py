import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records


@pytest.fixture
def root(draw):
    return draw([
        "DukeMTMC-reID/bounding_box_train/0001_c2_f0046182.jpg", "DukeMTMC-reID/query/0005_c2_f0046985.jpg",
        "DukeMTMC-reID/bounding_box_test/0005_c8_f0000001.jpg", "DukeMTMC-reID/bounding_box_test/0006_c1_f0000002.jpg",
    ])  # fmt: skip


@pytest.mark.parametrize("inside", ["", "DukeMTMC-reID"])
def test_gallery_people_without_query_are_persons(root, inside):
    records = read_records("dukemtmc", root / inside, {"counts": "any"})
    assert [(one.split, one.pid, one.camid, one.role) for one in records] == [
        ("gallery", 5, 8, "person"), ("gallery", 6, 1, "person"), ("train", 1, 2, "person"), ("query", 5, 2, "person"),
    ]  # fmt: skip


def test_an_incomplete_set_is_refused(root):
    with pytest.raises(DataError, match=r"train images 1 \(expected 16,522\).*gallery identities 2 \(expected 1,110\)"):
        read_records("dukemtmc", root, {})
