import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records

LISTS = {
    "train": ["0000/0000_000_01_0303morning_0008_0.jpg 0"],
    "val": ["0001/0001_004_15_0303noon_0010_1.jpg 1"],
    "query": ["0000/0000_001_03_0303evening_0001_0.jpg 0"],
    "gallery": ["0000/0000_002_04_0303evening_0001_0.jpg 0"],
}


@pytest.fixture(params=[("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")])
def root(draw, request):
    home, train, test = request.param
    folders = {"train": train, "val": train, "query": test, "gallery": test}
    root = draw(f"{home}/{folders[name]}/{line.split()[0]}" for name, lines in LISTS.items() for line in lines)
    for name, lines in LISTS.items():
        (root / home / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_test_people_are_others_and_nobody_is_a_distractor(root):
    records = read_records("msmt17", root, {"counts": "any"})
    assert {(one.split, one.pid, one.camid, one.role) for one in records} == {
        ("train", 0, 1, "person"), ("train", 1, 15, "person"), ("query", 10_000, 3, "person"),
        ("gallery", 10_000, 4, "person"),
    }  # fmt: skip
    assert len({one.key for one in records}) == 4
    assert all(one.image.read() for one in records)


def test_an_incomplete_set_is_refused(root):
    with pytest.raises(DataError, match=r"train images 2 \(expected 32,621\).*cameras 4 \(expected 15\)"):
        read_records("msmt17", root, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0009/0009_000_01_x.jpg 9", "images are not in .*train.*0009/0009_000_01_x.jpg"),
        ("../../secret_000_01_x.jpg 9", "images are not in"),
        ("0000/0000.jpg 0", "found '0000/0000.jpg 0'; expected lines `path pid`"),
        ("0000/0000_000_01_0303morning_0008_0.jpg", "expected lines `path pid`"),
    ],
)
def test_bad_lines_are_named(root, draw, line, message):
    (home,) = root.iterdir()
    draw(["secret_000_01_x.jpg"])
    (home / "list_train.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        read_records("msmt17", home, {"counts": "any"})


def test_a_missing_list_or_folder_is_named(root):
    (home,) = root.iterdir()
    (home / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"has no list_val.txt"):
        read_records("msmt17", home, {})
    (home / "list_val.txt").touch()
    next(home.glob("*test*")).rename(home / "gone")
    with pytest.raises(DataError, match=r"has no (mask_)?test"):
        read_records("msmt17", home, {})
