"""Small files of plain values: read as they are written, and refused where they are large, deep or odd."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from embae.datasets.files.json_files import read_json
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import DEEPEST, MOST
from embae.datasets.files.yaml_files import format_yaml, parse_yaml

TREE = {"text": "x", "é": [1, 2.5, -3, True, None, "3e4", "2001-01-01", "1:30", "~", ""], "deep": [{"a": [{}, []]}]}


def test_trees_come_back(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(TREE))
    assert read_json(tmp_path / "x.json") == TREE
    assert parse_yaml(format_yaml(TREE)) == TREE
    assert parse_yaml("a: 3e-4\nb: 2001-01-01\n") == {"a": 3e-4, "b": "2001-01-01"}
    assert parse_yaml("1: {2: x}", number_keys=True) == {1: {2: "x"}}


def test_aliases_are_copies() -> None:
    found = parse_yaml("a: &x {b: [1]}\nc: *x\n")
    found["a"]["b"].append(2)
    assert found["c"] == {"b": [1]}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(24))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!int 3", "found the tag"),
        ("a: ! x", "found the tag"),
        ("[" * 100_000, "within each other"),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "within each other"),
        ("&a [*a]", "within each other"),
        (BOMB, "too large"),
        ("x" * (MOST + 1), "longer than"),
        ("a: 1\na: 2", "appears twice"),
        ("1: x", "the key 1 is not text"),
        ("[1]: x", "unhashable"),
        ("a: *b", "undefined alias"),
        ("a: " + "9" * 30, "more than 64 bits"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 0b_", "invalid literal"),
        ("a: " + ":".join(["1"] * 300) + ".5", "too large"),
        ('a: "\\0"', "invalid character"),
        ('"\\ud800": a', "invalid character"),
    ],
)
def test_yaml_that_is_not_plain(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 99 + "]" * 99, "9" * 30, '"\\ud800"', "{", "\xff", '{"a": "\\u0000"}']
)
def test_json_that_is_not_plain(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_only_plain_files_of_some_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    wrong: list[tuple[Any, int, str]] = [
        (tmp_path / "x", 4, "larger than 4 bytes"), (tmp_path / "pipe", 9, "not a plain file"),
        (tmp_path, 9, "not a plain file"),
        (Path("/dev/zero"), 9, "not a plain file"), (tmp_path / "none", 9, "No such file"),
        (Path("x" * 300), 9, "too long"),
    ]  # fmt: skip
    for path, most, message in wrong:
        with pytest.raises(OSError, match=message):
            read_bytes(path, most)
    with pytest.raises(ValueError):
        read_bytes(Path("a\0b"), 9)
