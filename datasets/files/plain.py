"""Small text files that a stranger may have written: read up to a size, JSON and YAML of plain values only.

What comes out is a tree of mappings with text for keys, lists, text, numbers, true, false and null, which shares
nothing, is no deeper than `DEEPEST` and holds no more than `MOST` values and characters. So whatever walks, prints or
writes it ends soon.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from yaml.constructor import ConstructorError

MOST = 10**6  # of a tree: values and characters, aliases written out
DEEPEST = 50  # mappings and lists within each other; ours have 8 at most


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file, if it is a plain one of at most so many bytes.

    Raises:
        OSError: It cannot be read, is larger, or is no plain file (whose reading may never end).
        ValueError: The path cannot be one.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
    return data


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to read if it is a plain one.

    Raises:
        OSError: It cannot be read, or is no plain file.
        ValueError: The path cannot be one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_json(path: Path, most: int = MOST) -> Any:
    """The tree of a JSON file.

    Raises:
        OSError: It cannot be read, is larger, or is no plain file.
        ValueError: Not JSON, or not a plain tree.
    """
    try:
        found = json.loads(read_bytes(path, most))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return _copy(found, [most])


def parse_yaml(text: str, *, numbered: bool = False) -> Any:
    """The tree of a YAML text.

    Args:
        text: YAML.
        numbered: Whether keys may be whole numbers too.

    Raises:
        ValueError: Not YAML, or not a plain tree; tags, repeated keys and unknown aliases are not taken.
    """
    if len(text) > MOST:
        raise ValueError(f"longer than {MOST:,} characters")
    try:
        return _copy(yaml.load(text, Loader=PlainLoader), [MOST], numbered)  # a SafeLoader
    except (yaml.YAMLError, OverflowError) as error:  # 1:1:1… in base 60 may be too large for a number with a fraction
        raise ValueError(" ".join(str(error).split())) from error


def _copy(value: Any, left: list[int], numbered: bool = False, deeper: int = DEEPEST) -> Any:
    """A copy that shares nothing: an alias would carry a change elsewhere, and aliases of aliases grow on."""
    if isinstance(value, (dict, list)) and not deeper:
        raise ValueError(_TOO_DEEP)
    left[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if left[0] < 0:
        raise ValueError("too large, with its aliases (*name) written out")
    if isinstance(value, dict):
        return {_key(key, numbered): _copy(below, left, numbered, deeper - 1) for key, below in value.items()}
    if isinstance(value, list):
        return [_copy(below, left, numbered, deeper - 1) for below in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _number(value)
    if not isinstance(value, (float, type(None))):
        raise ValueError(f"found a {type(value).__name__}; wanted text, numbers, true, false, lists and mappings")
    return value


def _key(key: Any, numbered: bool) -> Any:
    if isinstance(key, str):
        return _text(key)
    if numbered and type(key) is int:
        return _number(key)
    raise ValueError(f"the key {str(key)[:80]} is not text; put it in quotes")


def _number(value: int) -> int:
    if abs(value) > _LARGEST:  # arrays could not hold it, nor could Python print one of 5,000 digits
        raise ValueError("found a whole number of more than 64 bits")
    return value


def _text(text: str) -> str:
    if _NO_TEXT.search(text):  # no file can be named so, and half a character cannot be written
        raise ValueError(f"the text {text[:60]!r} holds what is no character")
    return text


_LARGEST = 2**63 - 1
_TOO_DEEP = f"more than {DEEPEST} mappings and lists within each other"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses tags and repeated keys, and reads 3e-4 as a number (YAML 1.1 does not), dates as text."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        # A tag would have a value converted into what it is not, and each conversion fails in a way of its own.
        if getattr(event, "tag", None) is not None:
            raise ConstructorError(None, None, f"found the tag {event.tag}; wanted none", event.start_mark)
        if self._depth > DEEPEST:
            raise ConstructorError(None, None, _TOO_DEEP, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # its hints claim a mapping; it is a name or None
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r} stands here twice", key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST // 100:  # else merge keys (<<) that merge merge keys grow without end
            raise ConstructorError(None, None, "its merge keys (<<) stand for too much", node.start_mark)


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
PlainLoader.yaml_implicit_resolvers = {first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
                                       for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class PlainDumper(yaml.SafeDumper):
    """Puts text in quotes that the loader would read as a number."""


PlainDumper.yaml_implicit_resolvers = dict(yaml.SafeDumper.yaml_implicit_resolvers)
for _either in (PlainLoader, PlainDumper):
    _either.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                  list("-+0123456789"))
