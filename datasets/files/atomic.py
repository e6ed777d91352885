"""Files and folders that appear complete or not at all, also after a crash or a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it.

    Not for files that two processes may write at the same time: both would use the same temporary name.

    Args:
        path: The file; one that already exists is replaced.
        write: Writes the content into an open file.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write_atomically` does, without changing line ends."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; at the end its files are flushed to disk and it is renamed to ``path``.

    If the block raises an exception, the temporary folder is removed and what was at ``path`` before stays.

    Args:
        path: The folder to create; one that already exists is replaced at the end.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            sync_file(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(partial)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flushes to disk what another writer wrote into a file, so that it survives a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder to disk, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
