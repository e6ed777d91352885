"""Several writers of one dataset in a folder that they share: the same bytes, whoever dies, hangs or comes late."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.sharding_session import contents, make_images, session, shard, start, until

from embae.datasets.errors import DataError
from embae.datasets.index.card import CARD
from embae.datasets.index.records import Record
from embae.datasets.inspection.verification import verify
from embae.datasets.sharding import index as shard_index
from embae.datasets.sharding import queue as shard_queue
from embae.datasets.sharding import write_shards as sharding
from embae.datasets.sharding import writer as shard_writer
from embae.datasets.sharding.dataset_lock import dataset_lock
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.plan import plan_shards
from embae.datasets.sharding.writer import ShardTask, write_shard


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_queue, "PATIENCE_S", 0.2)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return make_images(tmp_path / "images")


@pytest.fixture
def whole(records: list[Record], tmp_path: Path) -> dict[str, bytes]:
    """What one process makes."""
    return contents(shard(records, tmp_path / "whole").root)


def all_written(records: list[Record], out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Path:
    """A folder of finished shards whose writer was killed before the index."""
    def killed(*_: object) -> None:
        raise InterruptedError
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "write_shard_index", killed)
        with pytest.raises(DataError):
            shard(records, out, join=True, **options)
    return out / "set.partial"


@pytest.mark.ranks
def test_processes_share_the_shards(records: list[Record], whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [start(records, out, "fast", "join") for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert contents(out / "set") == whole
    assert os.listdir(out) == ["set"]


@pytest.mark.ranks
@pytest.mark.parametrize("fate", ["killed", "stuck"])
def test_shards_of_one_that_is_lost_are_written_by_another(
    records: list[Record], whole: dict[str, bytes], tmp_path: Path, fate: str
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out" / "set.partial"
    process = start(records, out, "slow", "join")
    try:
        until(lambda: len(list(partial.glob("*.claim"))) > len(list(partial.glob("*.part.json"))) > 0)
        until(lambda: list(partial.glob("*.tmp/*.tar")))  # in the middle of one
        finished = [path.name.replace(".part.json", ".tar") for path in partial.glob("*.part.json")]
        before = {name: (partial / name).stat().st_ino for name in finished}
        if fate == "killed":
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        index = shard(records, out, join=True)
        assert {name: (index.root / name).stat().st_ino for name in finished} == before
        assert contents(index.root) == whole
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert sorted(os.listdir(out)) == ([".set.lock", "set"] if fate == "stuck" else ["set"])


def test_exactly_one_of_those_who_find_all_finished_renames(
    records: list[Record], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = all_written(records, tmp_path / "out", monkeypatch)
    barrier = threading.Barrier(4)

    def join(out: Path) -> dict[str, bytes]:
        barrier.wait()
        return contents(shard(records, out, join=True).root)

    with ThreadPoolExecutor(4) as pool:
        for number in range(25):
            out = tmp_path / str(number)
            shutil.copytree(partial, out / "set.partial")
            for found in [future.result() for future in [pool.submit(join, out) for _ in range(4)]]:
                # The last one out may be clearing away what a late writer left.
                assert {name: data for name, data in found.items() if not name.endswith(".tmp")} == whole
            assert contents(out / "set") == whole
            assert os.listdir(out) == ["set"]


@pytest.mark.ranks
def test_a_late_writer_of_a_shard_leaves_the_complete_dataset_alone(
    records: list[Record], whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out" / "set.partial"
    process = start(records, out, "pause", "join")  # its workers hold shards until there is a file
    try:
        until(lambda: list(partial.glob("*.tmp/*.tar")))
        assert contents(shard(records, out, join=True).root) == whole
        (tmp_path / "go").touch()
        errors = process.communicate(timeout=60)[1]
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    assert contents(out / "set") == whole
    assert os.listdir(out) == ["set"]


def test_other_options_are_refused_by_name(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = all_written(records, tmp_path / "out", monkeypatch)
    before = contents(partial)
    for options, said in (
        ({"size": (36, 18)}, r"size is None there and \[36, 18\] here"),
        ({"images_per_shard": 6}, "images_per_shard is 5 there and 6 here"),
        ({"reader": "other"}, "source is .*'test'.* there and .*'other'.* here"),
    ):
        with pytest.raises(DataError, match=f"set.partial is of other records or options: {said}; give"):
            shard(records, tmp_path / "out", join=True, **options)
    with pytest.raises(DataError, match="images is 24 there and 23 here"):
        shard(records[1:], tmp_path / "out", join=True)
    with pytest.raises(DataError, match="other images or labels"):
        shard([replace(records[0], camid=9), *records[1:]], tmp_path / "out", join=True)
    assert contents(partial) == before


def test_nobody_joins_who_was_not_told_to(records: list[Record], tmp_path: Path) -> None:
    lock = tmp_path / "out" / ".set.lock"
    lock.parent.mkdir()
    said = f"process {os.getpid()} is writing .*start all of them with --join"
    with dataset_lock(lock), pytest.raises(DataError, match=said):
        shard(records, tmp_path / "out", join=True)
    with dataset_lock(lock, join=True):
        with dataset_lock(lock, join=True), pytest.raises(DataError, match="others are writing this dataset"):
            shard(records, tmp_path / "out")
        with pytest.raises(DataError, match="others are writing"):  # one of them has ended
            shard(records, tmp_path / "out")
    assert not lock.exists()


def test_who_joins_while_the_last_one_removes_the_lock_waits_a_moment(tmp_path: Path) -> None:
    lock = tmp_path / ".set.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def end() -> None:
        time.sleep(0.1)
        lock.unlink()
        os.close(descriptor)

    thread = threading.Thread(target=end)
    thread.start()
    with dataset_lock(lock, join=True):
        assert lock.exists()
    thread.join()


def test_an_open_file_that_was_cleared_away_over_a_network_is_no_error(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers so to who writes into a file that another machine has removed."""
    def stale(descriptor: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "fsync", stale)
    out = tmp_path / "out"
    out.mkdir()
    task = ShardTask(out, "train-000000", "set", records, None, False)
    with pytest.raises(DataError, match="cannot be written"):
        write_shard(task)
    fill = shard_writer.fill_shard

    def complete(*arguments: object) -> bool:
        (out / CARD).touch()
        return fill(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "fill_shard", lambda *given: complete(*given[:3], lambda: False))
    assert write_shard(task) == []
    assert os.listdir(out) == [CARD]


def test_a_folder_that_may_not_be_renamed_is_an_error_for_who_joins(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(path: Path, target: Path) -> None:
        tries.append(path)
        if len(tries) > 3:
            pytest.fail("tries again for ever")
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    all_written(records, tmp_path / "out", monkeypatch)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=r"cannot be written \(Operation not permitted"):
        shard(records, tmp_path / "out", join=True)


def test_bad_images_of_all_are_listed(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [records[number].image.path for number in (1, 12)]  # type: ignore[attr-defined]
    good = paths[0].read_bytes()
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="2 of 24 images cannot be used"):
        shard(records, tmp_path / "out", join=True)
    partial = all_written(records, tmp_path / "out", monkeypatch, skip_bad=True)
    before = {path.name: path.stat().st_ino for path in partial.glob("*.tar")}
    shutil.copytree(partial, tmp_path / "mended" / "set.partial")
    index = shard(records, tmp_path / "out", join=True, skip_bad=True)
    assert {path.name: path.stat().st_ino for path in index.root.glob("*.tar")} == before  # nobody did them again
    assert index.card["skipped"] == 2
    listed = (index.root / "skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in listed] == [str(path) for path in paths]
    paths[0].write_bytes(good)
    index = shard(records, tmp_path / "mended", join=True, skip_bad=True)
    assert (index.card["skipped"], len(index)) == (1, 23)


def test_an_image_mended_while_another_writes_the_index(
    records: list[Record], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records[1].image.path  # type: ignore[attr-defined]
    good = path.read_bytes()
    path.write_bytes(b"")
    partial = all_written(records, tmp_path / "out", monkeypatch, skip_bad=True)
    assemble = shard_index.assemble

    def slow(*arguments: Any) -> Any:
        found = assemble(*arguments)
        if not path.stat().st_size:
            path.write_bytes(good)
            plan = plan_shards("set", records, ShardOptions(images_per_shard=5))
            (stem,) = sharding.find_unfinished(partial, plan, None, True)
            write_shard(ShardTask(partial, stem, "set", plan.shards[stem], None, True))
        return found

    monkeypatch.setattr(shard_index, "assemble", slow)
    index = shard(records, tmp_path / "out", join=True, skip_bad=True)
    assert verify(index) == [] and len(index) == 24 and contents(index.root) == whole


def test_who_skips_no_bad_images_takes_no_dataset_that_another_made_without_some(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records[1].image.path.write_bytes(b"")  # type: ignore[attr-defined]

    def killed(folder: Path) -> None:
        raise InterruptedError
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "remove_leftovers", killed)  # before it renames
        with pytest.raises(DataError):
            shard(records, tmp_path / "out", join=True, skip_bad=True)
    with pytest.raises(DataError, match="was made without 1 bad images"):
        shard(records, tmp_path / "out", join=True)
    assert len(shard(records, tmp_path / "out", join=True, skip_bad=True)) == 23
