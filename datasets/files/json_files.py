"""JSON files: read with limits, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embae.datasets.files.atomic import write_text
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST, TOO_DEEP, copy_plain


def read_json(path: Path, most: int = MOST) -> Any:
    """Reads the plain tree (`plain_tree`) of a JSON file.

    Args:
        path: The file.
        most: Bytes, and values of the tree, at most.

    Raises:
        OSError: The file cannot be read, is larger, or is not a regular file.
        ValueError: The file is not JSON, or its content is not a plain tree.
    """
    try:
        tree = json.loads(read_bytes(path, most))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return copy_plain(tree, most)


def format_json(tree: Any, *, indent: int | None = 1, ascii_only: bool = True) -> str:
    """A tree as JSON text without a newline at the end; on one line where ``indent`` is None."""
    return json.dumps(tree, indent=indent, ensure_ascii=ascii_only)


def write_json(path: Path, tree: Any, *, indent: int | None = 1, ascii_only: bool = True) -> None:
    """Writes a JSON file atomically, with a newline at the end.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    write_text(path, format_json(tree, indent=indent, ascii_only=ascii_only) + "\n")
