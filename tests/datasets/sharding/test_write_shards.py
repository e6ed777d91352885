"""Records become shards: real tars, whole or not there, the same bytes whatever happened on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers.sharding_session import contents, make_images, session, shard, start, until
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import FileImage, Record
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.sharding import write_shards as sharding
from embae.datasets.sharding import writer as shard_writer
from embae.datasets.sharding.dataset_lock import dataset_lock
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.plan import plan_shards
from embae.datasets.sharding.write_shards import write_shards


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    index = shard(records, tmp_path / "out")
    files = [str(index.root / name) for name in index.shards]
    samples = {s["__key__"]: s for s in webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")}
    assert samples.keys() == {record.key for record in records}
    for record in records:
        sample = samples[record.key]
        assert sample["json"] == {
            "pid": record.pid, "camid": record.camid, "role": record.role, "split": record.split, "dataset": "set",
        }  # fmt: skip
        assert Path(sample["__url__"]).name.startswith(record.split)
        np.testing.assert_array_equal(sample["jpg"], np.asarray(Image.open(record.image.path)))  # type: ignore[attr-defined]


def test_the_index_finds_every_image(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    random.Random(1).shuffle(records)
    index = shard(records, tmp_path / "out")
    by_key = {record.key: record for record in records}
    assert {index.key(row) for row in range(len(index))} == by_key.keys()
    with ShardReader(index, open_files=2) as reader:
        for row in random.Random(2).sample(range(len(index)), len(index)):
            record = by_key[index.key(row)]
            assert reader.read(row) == record.image.read()  # originals are passed through
            assert bool(index.labelled[row]) == (record.pid is not None)
            assert record.pid is None or index.pid[row] == record.pid
            assert index.camid[row] == record.camid
    assert index.image == (64, 32)
    assert index.card["source"] == {"reader": "test"}
    assert {path.name for path in index.root.iterdir()} == {"dataset.yaml", "index.arrow", *index.shards}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["set"]  # no lock, no partial folder


def test_reader_keeps_few_files_open(tmp_path: Path) -> None:
    index = shard(make_images(tmp_path / "images"), tmp_path / "out")
    assert len(index.shards) > 3
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(index, open_files=2)
    for row in range(len(index)):
        reader.read(row)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_workers_and_order_do_not_change_a_byte(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    one = shard(records, tmp_path / "one", workers=1)
    random.Random(3).shuffle(records)
    two = shard(records, tmp_path / "two", workers=2)
    assert contents(one.root) == contents(two.root)
    other = shard(records, tmp_path / "three", images_per_shard=7)
    assert other.fingerprint == one.fingerprint
    assert other.shards != one.shards


def test_tar_headers_hold_nothing_of_this_machine(tmp_path: Path) -> None:
    index = shard(make_images(tmp_path / "images"), tmp_path / "out")
    with tarfile.open(index.root / index.shards[0]) as tar:
        found = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert found == {(0, 0, 0, "embae", "embae", 0o444)}


@pytest.mark.parametrize("per_shard", [1, 3, 4, 5, 8, 9, 100])
def test_an_identity_is_cut_only_where_it_must(per_shard: int) -> None:
    image = FileImage(Path("x.jpg"))
    sizes = [4, 1, 3, 8, 2, 2, 9, 1]
    records = [Record(f"k{pid}-{i}", "train", pid, 0, image) for pid, n in enumerate(sizes) for i in range(n)]
    records += [Record(f"u{i}", "train", None, 0, image) for i in range(7)]
    shards = list(plan_shards("set", records, ShardOptions(images_per_shard=per_shard)).shards.values())
    assert sorted(r.key for s in shards for r in s) == sorted(r.key for r in records)
    assert all(1 <= len(s) <= per_shard for s in shards)
    for pid, n in enumerate(sizes):
        touched = sum(any(r.pid == pid for r in s) for s in shards)
        assert touched == -(-n // per_shard), pid


def test_stored_at_the_size_that_training_reads(tmp_path: Path) -> None:
    index = shard(make_images(tmp_path / "images"), tmp_path / "out", size=(36, 18))
    assert index.image == (36, 18)
    with ShardReader(index) as reader:
        assert {Image.open(io.BytesIO(reader.read(row))).size for row in range(len(index))} == {(18, 36)}


def test_a_complete_dataset_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_images(tmp_path / "images")
    first = shard(records, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in first.root.iterdir()}
    capsys.readouterr()
    assert shard(records, tmp_path / "out").fingerprint == first.fingerprint
    assert "is complete already: 24 images" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in first.root.iterdir()} == before
    for change in ({"size": (36, 18)}, {"images_per_shard": 6}):
        with pytest.raises(DataError, match=r"exists and was made from other records or with other options.*remove"):
            shard(records, tmp_path / "out", **change)
    with pytest.raises(DataError, match="now 23 images"):
        shard(records[1:], tmp_path / "out")
    with pytest.raises(DataError, match="other records"):
        shard([replace(records[0], camid=9), *records[1:]], tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    for name in ("set", "set.partial"):
        thing = tmp_path / "out" / name / "holiday.txt"
        thing.parent.mkdir(parents=True)
        thing.touch()
        with pytest.raises(DataError, match=r"is not a complete dataset|is not of embae shard"):
            shard(records, tmp_path / "out")
        thing.unlink()
        thing.parent.rmdir()


# A run in a process of its own, to be killed: reading an image of an identity above 1 takes long.


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["SIGKILL of the parent", "Ctrl-C"])
def test_what_was_interrupted_goes_on(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_images(tmp_path / "images")
    out, partial = tmp_path / "out", tmp_path / "out" / "set.partial"
    process = start(records, out)
    try:
        # A shard is finished, and another one is being written.
        until(lambda: list(partial.glob("*.part.json")) and list(partial.glob("*.tmp")))
        assert len(session(process.pid)) >= 3
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        process.wait(60)
        until(lambda: not session(process.pid), 30)  # no orphans
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        errors = process.communicate()[1]
    assert process.returncode != 0
    assert errors.count("Traceback") == (how == "Ctrl-C"), errors  # the parent's own; workers end without a word
    assert not (out / "set").exists()
    with pytest.raises(DataError, match=r"its sharding was interrupted .*run the same embae shard again"):
        Index.open(out / "set")
    finished = {p.name.replace(".part.json", ".tar") for p in partial.glob("*.part.json")}
    planned = plan_shards("set", records, ShardOptions(images_per_shard=5)).shards
    assert 0 < len(finished) < len(planned)
    before = {name: ((partial / name).stat().st_ino, (partial / name).stat().st_mtime_ns) for name in finished}

    index = shard(records, out)
    said = capsys.readouterr().err
    assert f"resuming after an interruption, {len(finished)} of {len(planned)} shards are finished" in said
    left = sum(len(images) for stem, images in planned.items() if f"{stem}.tar" not in finished)
    assert f"sharding set: {left} of {left} (100 %)" in said
    after = {name: ((index.root / name).stat().st_ino, (index.root / name).stat().st_mtime_ns) for name in finished}
    assert after == before
    assert contents(index.root) == contents(shard(records, tmp_path / "whole").root)
    assert os.listdir(out) == ["set"]


def test_what_was_interrupted_with_other_options_starts_anew(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    broken = [*records[:-1], replace(records[-1], image=FileImage(tmp_path / "none.jpg"))]
    with pytest.raises(DataError):
        shard(broken, tmp_path / "out")
    assert list((tmp_path / "out" / "set.partial").glob("*.tar"))
    assert contents(shard(records, tmp_path / "out", size=(36, 18)).root) == \
        contents(shard(records, tmp_path / "whole", size=(36, 18)).root)  # fmt: skip


def test_killed_between_the_index_and_its_renaming(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    whole = shard(records, tmp_path / "out")
    expected = contents(whole.root)
    written = (whole.root / "train-000000.tar").stat().st_mtime_ns
    whole.root.rename(tmp_path / "out" / "set.partial")
    (tmp_path / "out" / "set.partial" / "train-000000.part.json").write_text("{}")
    again = shard(records, tmp_path / "out")
    assert contents(again.root) == expected
    assert (again.root / "train-000000.tar").stat().st_mtime_ns == written  # not written again


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    process = start(make_images(tmp_path / "images"), tmp_path / "out", "die")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "DataError: sharding set: a worker process was killed, perhaps for want of memory; start again" in errors
    until(lambda: not session(process.pid), 5)
    assert not (tmp_path / "out" / "set").exists()


def bad_file(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 64), "red").save(out, "JPEG")
    header = b"P6 90000 90000 255\n"
    return {"truncated": out.getvalue()[:-20], "empty": b"", "text": b"not an image", "bomb": header}[kind]


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "bomb", "missing"])
def test_a_bad_image_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    records = make_images(tmp_path / "images")
    path = records[7].image.path  # type: ignore[attr-defined]
    good = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(bad_file(kind))
    with pytest.raises(DataError, match=f"1 of 24 images cannot be used:\n  {path}: .*\nRepair or remove .*--skip-bad"):
        shard(records, tmp_path / "out")
    assert not (tmp_path / "out" / "set").exists()
    path.write_bytes(good)
    assert len(shard(records, tmp_path / "out")) == 24


def test_many_bad_images_are_named_up_to_ten(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    for record in records[:13]:
        record.image.path.write_bytes(b"")  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        shard(records, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == "set: 13 of 24 images cannot be used:"
    shards = plan_shards("set", records, ShardOptions(images_per_shard=5)).shards
    in_order = [r for shard in shards.values() for r in shard if r in records[:13]]
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [str(record.image) for record in in_order[:10]]
    assert lines[11].strip() == "and 3 more"


def test_bad_images_are_skipped_on_request(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    whole = [record for record in records if record.split == "query"]
    bad = [records[2], *whole]  # the query shard loses all of its images
    for record in bad:
        record.image.path.write_bytes(b"GIF89a")  # type: ignore[attr-defined]
    index = shard(records, tmp_path / "out", skip_bad=True)
    assert {index.key(row) for row in range(len(index))} == {r.key for r in records} - {r.key for r in bad}
    assert index.count("query") == 0
    assert not [name for name in os.listdir(index.root) if name.startswith("query")]
    listed = (index.root / "skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in listed] == [str(record.image) for record in bad]
    assert index.card["skipped"] == len(bad) == 4
    # Nobody gets a dataset with holes without asking for it.
    with pytest.raises(DataError, match="made without 4 bad images"):
        shard(records, tmp_path / "out")
    assert len(shard(records, tmp_path / "out", skip_bad=True)) == 20


def test_what_was_skipped_is_tried_again(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    path = records[0].image.path  # type: ignore[attr-defined]
    good = path.read_bytes()
    path.write_bytes(b"")
    unforeseen = replace(records[-1], image=FileImage(str(records[-1].image)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="AttributeError"):  # after the first shard is written without its bad image
        shard([*records[:-1], unforeseen], tmp_path / "out", skip_bad=True, workers=1)
    assert (tmp_path / "out" / "set.partial" / "train-000000.part.json").exists()
    path.write_bytes(good)
    assert len(shard(records, tmp_path / "out")) == 24


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")[:3]
    for record in records:
        record.image.path.write_bytes(b"")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="not one of 3 images could be decoded"):
        shard(records, tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out" / "set").exists()


def test_what_a_reader_did_not_foresee_is_an_error_by_name(tmp_path: Path) -> None:
    record = replace(make_images(tmp_path / "images")[0], image=FileImage("images/7.jpg"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"images/7.jpg \(key p00_0\): reading it failed with AttributeError"):
        shard([record], tmp_path / "out", skip_bad=True)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")
    (tmp_path / "out").mkdir()
    with dataset_lock(tmp_path / "out" / ".set.lock"):
        with pytest.raises(DataError, match=f"process {os.getpid()} is writing this dataset"):
            shard(records, tmp_path / "out")
        assert not (tmp_path / "out" / "set.partial").exists()
    assert len(shard(records, tmp_path / "out")) == 24


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer.os, "fsync", full)
    task = shard_writer.ShardTask(tmp_path, "train-000000", "set", make_images(tmp_path / "i")[:2], None, False)
    with pytest.raises(DataError, match=r"train-000000.tar: no space left on the disk; make room and start again"):
        shard_writer.write_shard(task)
    assert os.listdir(tmp_path) == ["i"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.* cannot be written \(.*\); check the folder"):
        shard(make_images(tmp_path / "images"), tmp_path / "file")


@dataclass(frozen=True)
class Named:
    name: str

    def read(self) -> bytes:
        raise AssertionError("records are checked before any image is read")

    def __str__(self) -> str:
        return self.name


GOOD = Record("a", "train", 1, 1, Named("a.jpg"))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "set: no images"),
        ([GOOD, replace(GOOD, pid=2, image=Named("b.jpg"))], r"b.jpg \(key 'a'\): a.jpg has the same key"),
        ([replace(GOOD, key="a.b")], "a key has letters"),
        ([replace(GOOD, key="a/b")], "a key has letters"),
        ([replace(GOOD, key="a\n")], "a key has letters"),
        ([replace(GOOD, key="")], "a key has letters"),
        ([replace(GOOD, key="k" * 96)], "1 to 95 of them"),
        ([replace(GOOD, camid=-1)], "camid -1, expected a whole number from 0"),
        ([replace(GOOD, camid=2**31)], "camid 2147483648"),
        ([replace(GOOD, camid=None)], "camid None"),  # type: ignore[arg-type]
        ([replace(GOOD, pid=2**63)], "pid 9223372036854775808, expected a whole number of 64 bits"),
        ([replace(GOOD, pid="1")], "pid '1'"),  # type: ignore[arg-type]
        ([replace(GOOD, split="test")], "split 'test', expected one of train, query, gallery"),  # type: ignore[arg-type]
        ([replace(GOOD, role="ghost")], "role 'ghost', expected one of person"),  # type: ignore[arg-type]
    ],
)
def test_records_are_checked(tmp_path: Path, records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shard(records, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "x.partial"])
def test_dataset_names_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="dataset name"):
        write_shards(name, [GOOD], tmp_path / "out", source={})


def test_the_longest_key_fits_a_tar(tmp_path: Path) -> None:
    record = replace(make_images(tmp_path / "images")[0], key="k" * 95)
    index = shard([record], tmp_path / "out")
    with tarfile.open(index.root / index.shards[0]) as tar:
        assert tar.getnames() == ["k" * 95 + ".jpg", "k" * 95 + ".json"]


def test_extreme_numbers_survive(tmp_path: Path) -> None:
    records = make_images(tmp_path / "images")[:4]
    values = [(-(2**63), 0), (-1, 2**31 - 1), (2**63 - 1, 5), (None, 5)]
    records = [replace(r, pid=pid, camid=camid) for r, (pid, camid) in zip(records, values, strict=True)]
    index = shard(records, tmp_path / "out")
    rows = zip(index.pid, index.labelled, index.camid, strict=True)
    found = [(int(pid) if known else None, int(camid)) for pid, known, camid in rows]
    assert found == values
    with tarfile.open(index.root / index.shards[0]) as tar:
        stored = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert [(s["pid"], s["camid"]) for s in stored] == values


def test_ctrl_c_waits_for_workers_to_start() -> None:
    done, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt), sharding.defer_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append("started")
        assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(signal.SIGINT, before)
