import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records

NAMES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c6s4_000001_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": ["-1_c1s1_000401_03.jpg", "0000_c2s1_000151_01.jpg", "0001_c3s1_002301_02.jpg"],
}


@pytest.fixture
def root(draw):
    root = draw(f"Market-1501-v15.09.15/{folder}/{name}" for folder, names in NAMES.items() for name in names)
    (root / "Market-1501-v15.09.15/query/Thumbs.db").write_bytes(b"\0")
    return root


@pytest.mark.parametrize("inside", [False, True])
def test_records(root, inside):
    records = read_records("market1501", root / "Market-1501-v15.09.15" if inside else root, {"counts": "any"})
    assert [(one.key, one.split, one.pid, one.camid, one.role) for one in records] == [
        ("bounding_box_test_-1_c1s1_000401_03", "gallery", -1, 1, "junk"),
        ("bounding_box_test_0000_c2s1_000151_01", "gallery", 0, 2, "distractor"),
        ("bounding_box_test_0001_c3s1_002301_02", "gallery", 1, 3, "person"),
        ("bounding_box_train_0002_c1s1_000451_03", "train", 2, 1, "person"),
        ("bounding_box_train_0002_c6s4_000001_01", "train", 2, 6, "person"),
        ("query_0001_c1s1_001051_00", "query", 1, 1, "person"),
    ]
    assert (
        records[0].image.read() == (root / "Market-1501-v15.09.15/bounding_box_test/-1_c1s1_000401_03.jpg").read_bytes()
    )


def test_an_incomplete_set_is_refused(root):
    with pytest.raises(DataError) as refused:
        read_records("market1501", root, {})
    message = str(refused.value)
    for part in (
         "train images 2 (expected 12,936)", "train identities 1 (expected 751)",
        "gallery images 3 (expected 19,732)", "gallery junk images 1 (expected 3,819)", "cameras 4 (expected 6)",
        "take it as it is with counts=any",
    ):  # fmt: skip
        assert part in message


def test_the_official_counts_pass(root, monkeypatch):
    from embae.datasets.readers import market1501

    tiny = {"train images": 2, "train identities": 1, "query images": 1, "query identities": 1, "gallery images": 3,
            "gallery identities": 1, "gallery distractor images": 1, "gallery junk images": 1,
 "cameras": 4}  # fmt: skip
    assert tiny.keys() == market1501.COUNTS.keys()
    monkeypatch.setattr(market1501, "COUNTS", tiny)
    assert len(read_records("market1501", root, {"counts": "official"})) == 6


def test_official_counts_agree_with_each_other():
    from embae.datasets.readers.market1501 import COUNTS

    assert COUNTS["gallery images"] - COUNTS["gallery junk images"] == 15_913  # the figure others count


def test_a_missing_folder_is_named(root):
    (root / "Market-1501-v15.09.15/query").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"Market-1501-v15.09.15: has no query; expected .*bounding_box_train, query"):
        read_records("market1501", root / "Market-1501-v15.09.15", {})


def test_bad_names_are_counted_and_the_first_named(root, draw):
    draw(f"Market-1501-v15.09.15/query/{name}.jpg" for name in ("holiday", "beach"))
    with pytest.raises(DataError, match=r"query: images are not named .*: beach.jpg, holiday.jpg \(2 in all\);"):
        read_records("market1501", root, {"counts": "any"})
