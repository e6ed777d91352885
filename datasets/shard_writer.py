"""Writes one shard: runs in a worker process."""

from __future__ import annotations

import errno
import json
import os
import signal
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from embae.datasets.errors import DataError
from embae.datasets.images import prepare
from embae.datasets.index_writer import write_whole
from embae.datasets.records import Record

PART = ".part.json"
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        folder: Where to.
        stem: The shard's name without ``.tar``.
        dataset: Name of the dataset.
        records: Its images in order.
        size: (height, width) to store them at, or None.
        skip_bad: Leave out what cannot be decoded, instead of leaving the shard unwritten.
    """

    folder: Path
    stem: str
    dataset: str
    records: list[Record]
    size: tuple[int, int] | None
    skip_bad: bool


_counter: Any = None


def start_worker(stop: Connection, counter: Any) -> None:
    """Initializer of a worker: it ends at once when ``stop``'s other end closes, as it does when the parent dies.

    Args:
        stop: Read end of a pipe.
        counter: Shared number of images done.
    """
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides

    def watch() -> None:
        stop.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(task: ShardTask) -> list[str]:
    """Writes ``<stem>.tar`` and its part of the index, ``<stem>.part.json``, each renamed when whole.

    Where an image is bad and ``skip_bad`` is not set, the other images are still checked but nothing is written.

    Returns:
        A sentence for each image that cannot be read or decoded.

    Raises:
        DataError: The shard cannot be written, or reading an image failed in a way that its reader did not foresee.
    """
    target = task.folder / f"{task.stem}.tar"
    # The process id keeps two writers apart: a worker may outlive its killed parent by a moment.
    temporary = target.with_name(f"{target.name}.{os.getpid()}{TEMPORARY}")
    part: dict[str, Any] = {"kept": [], "crc32": [], "height": [], "width": [], "bad": {}}
    try:
        with writing(target), temporary.open("wb") as file:
            _fill(file, task, part)
            file.flush()
            os.fsync(file.fileno())
        if not part["bad"] or task.skip_bad:
            with writing(target):
                part["offset"], part["size"] = _members(temporary, [task.records[i].key for i in part["kept"]])
                part["bytes"] = temporary.stat().st_size
                if part["kept"]:
                    os.replace(temporary, target)
                write_whole(part_path(task.folder, task.stem), lambda file: file.write(json.dumps(part).encode()))
    finally:
        temporary.unlink(missing_ok=True)
    return list(part["bad"].values())


def part_path(folder: Path, stem: str) -> Path:
    """Where a shard's part of the index lies until the dataset is complete."""
    return folder / (stem + PART)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a disk may answer into a `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{path}: no space left on the disk; make room and start again, finished shards are kept") \
                from error
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check the folder and start again") \
            from error


def _fill(file: BinaryIO, task: ShardTask, part: dict[str, Any]) -> None:
    import webdataset  # here, as it imports torch, which takes seconds and which the parent does without

    # Fixed times, owners and modes: the same images make the same bytes, wherever and by however many workers.
    with webdataset.TarWriter(file, user="embae", group="embae", mode=0o444, mtime=0, encoder=False) as tar:
        for position, record in enumerate(task.records):
            try:
                data, height, width = _image(record, task.size)
            except _BadImage as bad:
                part["bad"][position] = str(bad)
            else:
                if not part["bad"] or task.skip_bad:
                    tar.write({"__key__": record.key, "jpg": data, "json": sidecar(record, task.dataset)})
                    part["kept"].append(position)
                    part["crc32"].append(zlib.crc32(data))
                    part["height"].append(height)
                    part["width"].append(width)
            if _counter is not None:
                with _counter.get_lock():
                    _counter.value += 1


class _BadImage(Exception):
    pass


def _image(record: Record, size: tuple[int, int] | None) -> tuple[bytes, int, int]:
    name = str(record.image)
    try:
        return prepare(record.image.read(), name, size)
    except DataError as error:
        raise _BadImage(str(error)) from error
    except OSError as error:
        raise _BadImage(f"{name}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        raise DataError(f"{name} (key {record.key}): reading it failed with {error!r}") from error


def sidecar(record: Record, dataset: str) -> bytes:
    """The ``<key>.json`` of an image."""
    values = {"pid": record.pid, "camid": record.camid, "role": record.role, "split": record.split, "dataset": dataset}
    return json.dumps(values).encode()


def _members(tar: Path, keys: list[str]) -> tuple[list[int], list[int]]:
    """Offset and size of each image, as an independent reader of the tar finds them."""
    with tarfile.open(tar, "r:") as file:
        found = [member for member in file if member.name.endswith(".jpg")]
    if [member.name for member in found] != [key + ".jpg" for key in keys]:
        raise DataError(f"{tar}: the tar does not hold the images written to it; check the disk and start again")
    return [member.offset_data for member in found], [member.size for member in found]
