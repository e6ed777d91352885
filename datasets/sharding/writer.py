"""Writes one shard: runs in a worker process."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import tarfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from embae.datasets.errors import DataError
from embae.datasets.files.atomic import sync_folder, write_text
from embae.datasets.files.json_files import format_json
from embae.datasets.images.encoding import prepare
from embae.datasets.index.card import CARD
from embae.datasets.index.records import Record

PART = ".part.json"
TEMPORARY = ".tmp"
# Errors of a writer whose folder another one renamed or removed; NFS also gives them for files that are open.
RENAMED = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE)
_LOOK = 64  # images between two looks whether another writer has finished the shard
_READERS, _CHUNK = 4, 8  # threads that read ahead, images that each reads at once


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

    Where an image is bad and ``skip_bad`` is not set, the other images are still checked but nothing is written. Nor is
    it where another writer of the same shard is done first.

    Returns:
        A sentence for each image that cannot be read or decoded.

    Raises:
        DataError: The shard cannot be written, or reading an image failed in a way that its reader did not foresee.
    """
    target, part_file = task.folder / f"{task.stem}.tar", part_path(task.folder, task.stem)
    # A separate folder: other machines may be writing this shard, and a worker may outlive its killed parent.
    scratch = task.folder / f"{task.stem}.{secrets.token_hex(8)}{TEMPORARY}"
    part: dict[str, Any] = {"kept": [], "offset": [], "size": [], "crc32": [], "height": [], "width": [], "bad": {}}
    before = stamp(part_file)

    def is_finished() -> bool:
        return stamp(part_file) != before or not task.folder.exists() or (task.folder / CARD).exists()

    with writing(target):
        try:
            scratch.mkdir()
            tar, text = scratch / target.name, scratch / part_file.name
            with tar.open("w+b") as file:
                if not fill_shard(file, task, part, is_finished):
                    return []
                file.flush()
                os.fsync(file.fileno())
                part["bytes"] = os.fstat(file.fileno()).st_size
            if (part["bad"] and not task.skip_bad) or is_finished():
                return list(part["bad"].values())
            write_text(text, format_json(part, indent=None))
            if part["kept"]:
                os.replace(tar, target)
            os.replace(text, part_file)
            sync_folder(task.folder)
        except OSError as error:
            if error.errno not in RENAMED or not is_finished():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return list(part["bad"].values())


def stamp(path: Path) -> tuple[int, int] | None:
    """What distinguishes a file from another of the same name; None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def part_path(folder: Path, stem: str) -> Path:
    """The file of a shard's part of the index, until the dataset is complete."""
    return folder / (stem + PART)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the disk into a `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{path}: no space left on the disk; make room and start again, finished shards are kept") \
                from error
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check the folder and start again") \
            from error


def fill_shard(file: BinaryIO, task: ShardTask, part: dict[str, Any], is_finished: Callable[[], bool]) -> bool:
    """Writes the tar and records where its images are; False if another writer has finished it meanwhile."""
    import webdataset  # here, as it imports torch, which takes seconds and which the parent does without

    # Fixed times, owners and modes: the same images make the same bytes, wherever and by however many workers.
    with webdataset.TarWriter(file, user="embae", group="embae", mode=0o444, mtime=0, encoder=False) as tar:
        for position, (record, read) in enumerate(zip(task.records, _read_ahead(task.records), strict=True)):
            if position % _LOOK == 0 and is_finished():
                _count(len(task.records) - position)
                return False
            try:
                data, height, width = _image(record, read, task.size)
            except _BadImage as bad:
                part["bad"][position] = str(bad)
            else:
                if not part["bad"] or task.skip_bad:
                    part["offset"].append(tar.tarstream.offset + tarfile.BLOCKSIZE)
                    tar.write({"__key__": record.key, "jpg": data, "json": sidecar(record, task.dataset)})
                    part["kept"].append(position)
                    part["size"].append(len(data))
                    part["crc32"].append(zlib.crc32(data))
                    part["height"].append(height)
                    part["width"].append(width)
            _count(1)
    _check(file, task, part)
    return True


def _count(images: int) -> None:
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += images


def _check(file: BinaryIO, task: ShardTask, part: dict[str, Any]) -> None:
    """Looks whether the images lie where they are noted to: what the tar says there must be their name and size."""
    for position, offset, size in zip(part["kept"], part["offset"], part["size"], strict=True):
        file.seek(offset - tarfile.BLOCKSIZE)
        header = file.read(136)  # the name's 100 bytes, mode and owners, the size in octal digits
        if (header[:100].rstrip(b"\0") != f"{task.records[position].key}.jpg".encode()
                or int(header[124:135] or b"0", 8) != size):
            raise DataError(f"{task.folder / task.stem}.tar: the tar does not hold the images written to it; check the "
                            "disk and start again")
    file.seek(0, os.SEEK_END)


def _read_ahead(records: Sequence[Record]) -> Iterator[bytes | Exception]:
    """The images' bytes, or what reading them raised, in order; read while others are decoded, since a file system that
    machines share takes longer to answer than an image takes to decode."""
    pool = ThreadPoolExecutor(_READERS)
    try:
        running: deque[Future[list[bytes | Exception]]] = deque()
        for start in range(0, len(records), _CHUNK):
            running.append(pool.submit(_read, records[start : start + _CHUNK]))
            if len(running) > _READERS:
                yield from running.popleft().result()
        for future in running:
            yield from future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(records: Sequence[Record]) -> list[bytes | Exception]:
    contents: list[bytes | Exception] = []
    for record in records:
        try:
            contents.append(record.image.read())
        except Exception as error:
            contents.append(error)
    return contents


class _BadImage(Exception):
    pass


def _image(record: Record, read: bytes | Exception, size: tuple[int, int] | None) -> tuple[bytes, int, int]:
    name = str(record.image)
    try:
        if isinstance(read, Exception):
            raise read
        return prepare(read, name, size)
    except DataError as error:
        raise _BadImage(str(error)) from error
    except OSError as error:
        raise _BadImage(f"{name}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        raise DataError(f"{name} (key {record.key}): reading it failed with {error!r}") from error


def is_bad(record: Record, size: tuple[int, int] | None) -> bool:
    """Whether an image cannot be read or decoded."""
    try:
        _image(record, _read([record])[0], size)
    except _BadImage:
        return True
    return False


def sidecar(record: Record, dataset: str) -> bytes:
    """The ``<key>.json`` of an image."""
    values = {"pid": record.pid, "camid": record.camid, "role": record.role, "split": record.split, "dataset": dataset}
    return json.dumps(values).encode()
