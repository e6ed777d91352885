import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from embae.datasets.errors import DataError
from embae.datasets.index.records import FileImage, Record
from embae.datasets.readers.read import read_records
from embae.datasets.readers.reader import Reader
from embae.datasets.readers.registry import READERS

FROM_FILES = [name for name, reader in READERS.items() if reader.needs_root]


@pytest.fixture
def plugin(monkeypatch):
    """A reader that hands back what it was called with."""
    seen = {}

    def list_records(
        root: Path, *, size: int = 3, rate: float = 0.5, flip: bool = False, way: Literal["in", "out"] = "in",
        limit: int | None = None, level: Literal[1, 2] = 1,
    ) -> list[Record]:  # fmt: skip
        seen.update(size=size, rate=rate, flip=flip, way=way, limit=limit, level=level, root=root)
        return []

    monkeypatch.setitem(READERS, "plugin", Reader("plugin", "", list_records))
    return seen


def test_readers():
    assert list(READERS) == [
        "market1501", "dukemtmc", "cuhk03", "cuhk01", "viper", "ward", "msmt17", "pku-reid", "luperson",
        "luperson-nl", "folder", "csv", "synthetic",
    ]  # fmt: skip


def test_options_take_the_types_of_the_signature(plugin, tmp_path):
    options = {"size": "7", "rate": "1e-2", "flip": "true", "way": "out", "limit": "-1", "level": "2"}
    read_records("plugin", tmp_path, options)
    assert plugin == {
        "root": tmp_path, "size": 7, "rate": 0.01, "flip": True, "way": "out", "limit": -1, "level": 2,
    }  # fmt: skip


def test_options_left_out_keep_their_defaults(plugin, tmp_path):
    read_records("plugin", tmp_path, {"flip": "no"})
    assert (plugin["size"], plugin["flip"], plugin["limit"]) == (3, False, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": "7"}, "plugin: unknown option 'sise'; did you mean size?"),
        ({"root": "/"}, "unknown option 'root'"),
        ({"zzz": "7"}, "choose from size, rate, flip, way, limit, level"),
        ({"size": "seven"}, "size=seven: expected a whole number"),
        ({"rate": "x"}, "rate=x: expected a number"),
        ({"flip": "perhaps"}, "flip=perhaps: expected true or false"),
        ({"way": "ou"}, "way=ou: unknown value; did you mean out? (choose from in, out)"),
        ({"level": "3"}, "level=3: unknown value (choose from 1, 2)"),
    ],
)
def test_wrong_options_are_refused(plugin, tmp_path, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_records("plugin", tmp_path, options)


def test_unknown_source(tmp_path):
    with pytest.raises(DataError, match="unknown source 'market'; did you mean market1501"):
        read_records("market", tmp_path, {})
    with pytest.raises(DataError, match=r"unknown source 'qqq' \(choose from market1501.*synthetic"):
        read_records("qqq", tmp_path, {})


@pytest.mark.parametrize("source", FROM_FILES)
def test_a_root_is_needed_and_must_exist(source, tmp_path):
    with pytest.raises(DataError, match=r"no root given; .*--root FOLDER"):
        read_records(source, None, {})
    with pytest.raises(DataError, match=f"{tmp_path}/absent: no such folder"):
        read_records(source, tmp_path / "absent", {})


@pytest.mark.parametrize("source", FROM_FILES)
def test_an_empty_folder_is_refused_by_name(source, tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        read_records(source, tmp_path, {})


def test_a_reader_without_root_needs_none(monkeypatch):
    def list_records(domain: str = "a", seed: int = 0) -> list[Record]:
        return [Record(f"{domain}-{seed + 1}", "train", 0, 0, FileImage(Path("x")))]

    monkeypatch.setitem(READERS, "drawn", Reader("drawn", "", list_records))
    assert [record.key for record in read_records("drawn", None, {"seed": "4"})] == ["a-5"]
    with pytest.raises(DataError, match="unknown option 'sede'; did you mean seed"):
        read_records("drawn", None, {"sede": "4"})


def test_synthetic_needs_no_root():
    options = {"domain": "plaza", "identities": "6", "cameras": "2"}
    assert read_records("synthetic", None, options)[0].key.startswith("plaza-")
    with pytest.raises(DataError, match="unknown option 'sede'; did you mean seed"):
        read_records("synthetic", None, {**options, "sede": "4"})
    with pytest.raises(DataError, match=r"needs option 'domain' \(choose from plaza, station"):
        read_records("synthetic", None, {})


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_reader_is_described_in_a_line_of_the_help(reader):
    assert reader.list_records.__doc__
    assert 0 < len(reader.summary) <= 37 and "\n" not in reader.summary


def test_an_option_without_default_is_needed(monkeypatch, tmp_path):
    def list_records(root: Path, domain: Literal["a", "b"], *, size: int) -> list[Record]:
        return [Record(f"{domain}{size}", "train", 0, 0, FileImage(root))]

    monkeypatch.setitem(READERS, "plugin", Reader("plugin", "", list_records))
    with pytest.raises(DataError, match=r"plugin: needs option 'domain' \(choose from a, b\)$"):
        read_records("plugin", tmp_path, {"size": "3"})
    with pytest.raises(DataError, match=r"plugin: needs option 'size'$"):
        read_records("plugin", tmp_path, {"domain": "b"})
    assert read_records("plugin", tmp_path, {"domain": "b", "size": "3"})[0].key == "b3"


def test_keys_are_safe_unique_and_independent_of_place(draw):
    names = [
        "a b.jpg",
        "a_b.jpg",
        "a/b.png",
        "x-1.JPG",
        "ü/é.jpg",
        "ö/é.jpg",
        "dots.in.name.bmp",
        "twin.jpg",
        "twin.png",
    ]
    root = draw(names)
    keys = {record.image.path.relative_to(root).as_posix(): record.key for record in read_records("folder", root, {})}
    assert set(keys) == set(names)
    assert len(set(keys.values())) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys.values())
    assert keys["x-1.JPG"] == "x-1"
    assert keys["dots.in.name.bmp"] == "dots_in_name"
    moved = root.with_name("moved")
    root.rename(moved)
    assert {record.key for record in read_records("folder", moved, {})} == set(keys.values())


def test_names_that_are_not_utf8(draw):
    root = draw(["a.jpg"])
    (root / "a.jpg").rename(root / "\udcff.jpg")
    (record,) = read_records("folder", root, {})
    assert record.key == "_"
    assert record.image.read()[:2] == b"\xff\xd8"


def test_order_is_not_that_of_the_file_system(draw, monkeypatch):
    root = draw([f"{name}.jpg" for name in "dbca"] + ["e/f.jpg", "B/f.jpg"])
    expected = ["B_f", "a", "b", "c", "d", "e_f"]
    assert [record.key for record in read_records("folder", root, {})] == expected
    import os

    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **rest: reversed(list(walk(*args, **rest))))
    assert [record.key for record in read_records("folder", root, {})] == expected


def test_what_is_no_image_is_passed_over(draw):
    root = draw(["a.JPEG", "b.Png", ".hidden.jpg", ".trash/c.jpg", "d.BMP"])
    (root / "Thumbs.db").write_bytes(b"\0")
    (root / "readme.txt").write_text("no image")
    assert [record.key for record in read_records("folder", root, {})] == ["a", "b", "d"]


def test_listing_and_reading_import_nothing_heavy():
    code = "import sys, embae.datasets.readers.read\n"
    code += "print({'torch', 'h5py', 'scipy', 'numpy', 'PIL'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
