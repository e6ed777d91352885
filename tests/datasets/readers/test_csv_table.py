import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records


@pytest.fixture
def root(draw):
    return draw(["a, b.jpg", "door/ü 1.jpg", "door/2.jpg", "3.jpg"])


def test_every_column(root):
    (root / "list.csv").write_text(
        "path,pid,camid,split,role\n"
        '"a, b.jpg",zoe,roof,query,\n'
        "door/ü 1.jpg,anna,door,,\n"
        "door/2.jpg,,door,gallery,junk\n",
        encoding="utf-8-sig",
    )
    records = {one.image.path.name: one for one in read_records("csv", root, {})}
    assert {name: (one.pid, one.camid, one.split, one.role) for name, one in records.items()} == {
        "a, b.jpg": (1, 1, "query", "person"), "ü 1.jpg": (0, 0, "train", "person"),
        "2.jpg": (None, 0, "gallery", "junk"),
    }  # fmt: skip
    assert records["2.jpg"].key == "door_2"
    assert all(one.image.read() for one in records.values())


def test_path_alone_and_the_file_as_root(root, monkeypatch):
    (root / "one.csv").write_text("path\ndoor/../3.jpg\n")
    (root / "two.csv").write_text(f"path,pid\n{root}/door/2.jpg,0012\n")
    (record,) = read_records("csv", root / "one.csv", {})
    assert (record.key, record.pid, record.camid, record.split, record.role) == ("3", None, 0, "train", "person")
    monkeypatch.chdir(root)
    (record,) = read_records("csv", root.__class__("two.csv"), {})
    assert (record.key, record.pid) == ("door_2", 12)
    assert record.image.read()


@pytest.mark.parametrize("path", ["../secret.jpg", "door/../../secret.jpg", "/etc/passwd", "ROOT-twin/x.jpg"])
def test_paths_do_not_leave_the_root(draw, path):
    root = draw(["in/a.jpg", "secret.jpg", "in-twin/x.jpg"]) / "in"
    path = path.replace("ROOT", str(root))
    (root / "list.csv").write_text(f"path\na.jpg\n{path}\n")
    with pytest.raises(DataError, match=f"paths lead out of {root}: {path}"):
        read_records("csv", root, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,cam_id\n3.jpg,1\n", "unknown column 'cam_id'; did you mean camid"),
        ("pid\n1\n", "lists no image"),
        ("path\n", "lists no image"),
        ("", "lists no image"),
        ("path\n3.jpg,5\n", "lines have too many fields: 3.jpg"),
        ("path\nnone.jpg\n", "images are not in .*: none.jpg"),
        ("path,pid\n,5\n", "images are not in"),
        ("path\n3.jpg\ndoor/../3.jpg\n", "images are listed more than once: 3.jpg"),
        ("path,split\n3.jpg,test\n", r"lines have an unknown split: test \(3.jpg\) \(1 in all\); choose from train"),
        ("path,role\n3.jpg,Junk\n", r"lines have an unknown role: Junk \(3.jpg\) \(1 in all\); choose from person"),
        ("path,camid\n3.jpg,1\ndoor/2.jpg,\n", "images have no camid while others have one: door/2.jpg"),
    ],
)
def test_bad_tables_are_refused(root, text, message):
    (root / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_records("csv", root, {})


def test_a_table_that_is_not_text(root):
    (root / "list.csv").write_bytes(b"path\n\xff\xfe.jpg\n")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_records("csv", root, {})


def test_a_folder_has_a_single_table(root):
    with pytest.raises(DataError, match="found 0 CSV files, expected one"):
        read_records("csv", root, {})
    for name in ("a.csv", "b.CSV"):
        (root / name).write_text("path\n3.jpg\n")
    with pytest.raises(DataError, match="found 2 CSV files, expected one"):
        read_records("csv", root, {})
