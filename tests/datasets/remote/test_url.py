"""Datasets behind a real web server: the same images, each shard fetched once a machine, whatever goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import web_server as served

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.index.records import Record
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.inspection.verification import verify
from embae.datasets.loading import prefetch
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import LoaderName, open_loader
from embae.datasets.merging.merge import merge
from embae.datasets.remote import url as remote
from embae.datasets.remote.cache import Cache
from embae.datasets.remote.url import Url, parse_location
from embae.datasets.sampling import shuffled_sampler
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.sequential_sampler import SequentialSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards

MIB = 1 / 1024  # of a GiB


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)


@pytest.fixture
def web(stored: Index, tmp_path: Path) -> Iterator[served.Web]:
    shutil.copytree(stored.root, tmp_path / "web" / "set")
    with served.serve(tmp_path / "web") as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", gib=1)


@pytest.fixture
def far(web: served.Web, cache: Cache) -> Url:
    return Url(web.url, cache) / "set"


def copies(cache: Cache, pattern: str = "*.tar") -> list[Path]:
    assert cache.folder
    return sorted(cache.folder.glob(f"*/{pattern}"))


def everything(index: Index) -> list[bytes]:
    with ShardReader(index) as reader:
        return [reader.read(row) for row in range(len(index))]


def batches(index: Index, loader: LoaderName, **options: object) -> list[Batch]:
    sampler = PKSampler(View([index], "train"), PKOptions(P=4, K=4, window=2), seed=0, stage="s")
    work = Work(sampler, ImageSpec(64, 32), Augment(flip=True, crop=True), 0, "s", 0, 6)
    opened = open_loader(replace(work, **options), loader=loader, device=torch.device("cpu"), threads=1)  # type: ignore[arg-type]
    try:
        return list(opened)
    finally:
        opened.close()


# What a url may be


@pytest.mark.parametrize("text", ["s3://bucket/shards", "gs://b", "http://h:80/a%20b", "https://h/x", "file:///data",
                                  "memory://x", "http://h/~me/x"])
def test_urls_of_stores_are_taken(text: str) -> None:
    found = parse_location(text + "/", Cache(folder=None, gib=3))
    assert isinstance(found, Url) and str(found) == text and str(found / "set") == f"{text}/set"
    assert (found / "set").cache == Cache(folder=None, gib=3)


@pytest.mark.parametrize("text", ["shards", "/data/shards", "a::b", "pipe:cat x", "c:/x", ""])
def test_other_text_is_a_path(text: str) -> None:
    assert parse_location(text) == Path(text)


@pytest.mark.parametrize("text", [
    "pipe://cat", "simplecache::s3://b/x", "s3://b/x::http://h", "ftp://h/x", "ssh://h/x", "github://a", "S3://b",
    "http://h/x?token=hidden", "http://h/x#hidden", "http://me:hidden@h/x", "s3://key:hidden@b", "http://h/a b\n",
    "http://", "s3:///", "zip://x", "reference://x", "local://x", "dask://x",
])  # fmt: skip
def test_other_urls_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(DataError) as refusal:
        parse_location(text)
    assert "hidden" not in str(refusal.value) and "url" in str(refusal.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://bucket/set/dataset.yaml: s3:// needs the package s3fs .*pip install"):
        Index.open(Url("s3://bucket", cache) / "set")


# Reading


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
def test_batches_are_bit_identical_to_those_of_a_folder(stored: Index, far: Url, loader: LoaderName) -> None:
    near, found = batches(stored, loader), batches(Index.open(far), loader)
    assert len(near) == len(found) == 6
    for a, b in zip(near, found, strict=True):
        assert (a.rows == b.rows).all() and torch.equal(a.inputs, b.inputs)


def test_a_file_is_fetched_once(stored: Index, far: Url, web: served.Web, cache: Cache) -> None:
    for _ in range(2):
        index = Index.open(far)
        assert everything(index) == everything(stored) and str(index.root) == str(far)
    assert set(web.gets) == {f"set/{name}" for name in ("dataset.yaml", "index.arrow", *stored.shards)}
    assert {path: count for path, count in web.gets.items() if count > 1} == {"set/dataset.yaml": 2}
    assert [path.name for path in copies(cache)] == stored.shards and not copies(cache, "*.part")
    assert verify(index) == []


def test_file_and_memory_urls(stored: Index, cache: Cache) -> None:
    import fsspec
    assert everything(Index.open(Url(f"file://{stored.root}", cache))) == everything(stored)
    fsspec.filesystem("memory").put(str(stored.root), "/far/set", recursive=True)
    assert everything(Index.open(Url("memory://far/set", cache))) == everything(stored)


def test_a_folder_is_not_copied(stored: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "open_copy", lambda *_: pytest.fail("copied"))
    assert stored.copies == "" and len(batches(stored, "webdataset")) == 6


CHILD = """
import sys, zlib
from pathlib import Path
from embae.datasets.remote.cache import Cache
from embae.datasets.index.arrow_index import Index
from embae.datasets.remote.url import Url
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.sharding.write_shards import write_shards
index = Index.open(Url(sys.argv[1], Cache(folder=Path(sys.argv[2]), gib=float(sys.argv[3]))))
print("open", flush=True)
sys.stdin.readline()
with ShardReader(index) as reader:
    print(sum(zlib.crc32(reader.read(row)) for row in range(len(index))))
"""


@pytest.fixture
def child(far: Url, cache: Cache) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that reads all of the dataset: it says ``open``, then waits for a line."""
    started: list[subprocess.Popen[str]] = []

    def start(gib: float = 1) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(far), str(cache.folder), str(gib)], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.ranks
def test_processes_fetch_a_shard_once_between_them(
    stored: Index, web: served.Web, child: Callable[..., subprocess.Popen[str]]
) -> None:
    web.latency_s = 0.1  # else one might be done before the other begins
    pair = [child(), child()]
    for process in pair:
        assert process.stdout and process.stdin and process.stdout.readline() == "open\n"
    for process in pair:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    said = [process.communicate(timeout=60)[0] for process in pair]
    assert said == [f"{int(stored.crc32.astype(np.int64).sum())}\n"] * 2
    assert {web.gets[f"set/{name}"] for name in (*stored.shards, "index.arrow")} == {1}


@pytest.mark.ranks
def test_a_kill_while_fetching_leaves_nothing_that_looks_whole(
    stored: Index, far: Url, web: served.Web, cache: Cache, child: Callable[..., subprocess.Popen[str]]
) -> None:
    process = child()
    assert process.stdout and process.stdin and process.stdout.readline() == "open\n"
    web.bytes_per_s = 2000  # slower than a chunk a test
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not copies(cache, "*.tar.part") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert copies(cache, "*.tar.part") and not copies(cache)
    web.bytes_per_s = float("inf")
    web.free_at = 0.0
    assert everything(Index.open(far)) == everything(stored)
    assert not copies(cache, "*.part") and len(copies(cache)) == len(stored.shards)


# The limit


@pytest.fixture
def many(photographs: list[Record], tmp_path: Path) -> Iterator[tuple[Index, served.Web]]:
    """A dataset of a shard an identity, behind a server."""
    from embae.datasets.sharding.write_shards import write_shards

    index = write_shards(
        "set", photographs, tmp_path / "many", source={}, options=ShardOptions(workers=1, images_per_shard=4)
    )
    with served.serve(tmp_path / "many") as found:
        yield index, found


def on_disk(cache: Cache) -> int:
    return sum(path.stat().st_size for path in copies(cache, "*"))


def size(index: Index, shard: int = 0) -> int:
    return (index.root / index.shards[shard]).stat().st_size  # type: ignore[operator]


def test_the_limit_is_kept_and_the_least_recently_read_goes(many: tuple[Index, served.Web], tmp_path: Path) -> None:
    near, web = many
    room = (near.root / "index.arrow").stat().st_size + 4.5 * max(size(near, shard) for shard in range(8))
    cache = Cache(folder=tmp_path / "cache", gib=room / 2**30)
    index, most = Index.open(Url(web.url, cache) / "set"), 0
    with ShardReader(index) as reader:
        for row in [*range(12), 0, *range(12, 32)]:  # shards 0 1 2, 0 again, 3 …
            reader.read(row)
            most = max(most, on_disk(cache))
            if row == 16:  # the fifth shard came in place of the one that was read longest ago
                names = [path.name for path in copies(cache)]
                assert near.shards[0] in names and near.shards[1] not in names
    assert near.shards[7] in [path.name for path in copies(cache)] and 3 <= len(copies(cache)) <= 4
    assert most <= cache.max_bytes and web.gets["set/train-000000.tar"] == 1


def test_what_is_about_to_be_read_is_not_removed(many: tuple[Index, served.Web], tmp_path: Path) -> None:
    near, web = many
    cache = Cache(
        folder=tmp_path / "cache", gib=((near.root / "index.arrow").stat().st_size + 3.5 * size(near)) / 2**30
    )
    index = Index.open(Url(web.url, cache) / "set")
    held = [index.open_shard(shard) for shard in range(2)]
    everything(index)
    assert {path.name for path in copies(cache)} >= set(near.shards[:2])
    assert [web.gets[f"set/{name}"] for name in near.shards[:2]] == [1, 1]
    for descriptor in held:
        os.close(descriptor)
    everything(index)
    assert on_disk(cache) <= cache.max_bytes


def test_shards_are_fetched_ahead_and_what_is_past_is_let_go(many: tuple[Index, served.Web], tmp_path: Path) -> None:
    _, web = many
    index = Index.open(Url(web.url, Cache(folder=tmp_path / "cache", gib=1)) / "set")
    sampler = SequentialSampler(View([index], "train"), batch=4, rows=np.arange(32))
    work = Work(sampler, ImageSpec(64, 32), Augment(), 0, "s", 0, 8)
    opened = open_loader(work, loader="webdataset", device=torch.device("cpu"), threads=1)
    deadline = time.monotonic() + 20
    while len(web.gets) < 10 and time.monotonic() < deadline:  # before a batch is asked for
        time.sleep(0.01)
    assert set(web.gets.values()) == {1} and len(web.gets) == 10
    assert len(list(opened)) == 8
    held = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}")}
    assert sum(name.endswith(".tar") for name in held) <= 3  # those of the last batch, and of the reader
    opened.close()
    assert set(web.gets.values()) == {1}


def test_each_pass_is_planned_once_for_the_loader_and_once_ahead_of_it(
    many: tuple[Index, served.Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, web = many
    index = Index.open(Url(web.url, Cache(folder=tmp_path / "cache", gib=1)) / "set")
    passes: Counter[int] = Counter()
    generator = shuffled_sampler.generator

    def counted(*purpose: Any) -> np.random.Generator:
        passes[purpose[-1]] += 1
        return generator(*purpose)

    monkeypatch.setattr(shuffled_sampler, "generator", counted)
    monkeypatch.setattr(prefetch, "BATCHES", 20)
    sampler = ShuffledSampler(View([index], "train"), batch=4, seed=0, stage="s")  # 8 batches a pass
    opened = open_loader(Work(sampler, ImageSpec(64, 32), Augment(), 0, "s", 0, 48), loader="webdataset",
                         device=torch.device("cpu"), threads=1)
    deadline = time.monotonic() + 20
    while len(passes) < 3 and time.monotonic() < deadline:  # before a batch is asked for
        time.sleep(0.01)
    assert len([time.sleep(0.01) for _ in opened]) == 48  # the walk goes on from batch to batch
    opened.close()
    assert passes == dict.fromkeys(range(6), 2)


def test_few_files_are_held_open(
    many: tuple[Index, served.Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, web = many
    monkeypatch.setattr(prefetch, "FILES", 3)  # fewer than the shards of a batch
    index = Index.open(Url(web.url, Cache(folder=tmp_path / "cache", gib=1)) / "set")
    sampler = PKSampler(View([index], "train"), PKOptions(P=4, K=2), seed=0, stage="s")
    opened = open_loader(Work(sampler, ImageSpec(64, 32), Augment(), 0, "s", 0, 12), loader="webdataset",
                         device=torch.device("cpu"), threads=1)
    rows, most = [], 0
    for batch in opened:
        rows.append(batch.rows)
        time.sleep(0.02)  # for the walk
        held = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        most = max(most, sum(name.endswith(".tar") for name in held))
    opened.close()
    assert 3 <= most <= 3 + 2  # and those of the reader
    assert len(rows) == 12 and set(web.gets.values()) == {1} and len(web.gets) == 2 + len(near.shards)


def test_a_small_cache_only_slows_down(many: tuple[Index, served.Web], tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    near, web = many
    room = (near.root / "index.arrow").stat().st_size + 1.5 * size(near)
    index = Index.open(Url(web.url, Cache(folder=tmp_path / "cache", gib=room / 2**30)) / "set")
    far = batches(index, "webdataset", stop=12)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(far, batches(near, "webdataset", stop=12), strict=True))
    assert "raise data.cache.gib, or set data.window" in capsys.readouterr().err


def test_a_shard_larger_than_the_cache_is_refused(far: Url, tmp_path: Path) -> None:
    index = Index.open(far)
    index.root = Url(str(far), Cache(folder=tmp_path / "small", gib=1e-6))
    with pytest.raises(DataError, match=r"train-000000.tar: [\d,]+ bytes are more than data.cache may hold"):
        ShardReader(index).read(0)


# What goes wrong


def test_a_missing_shard_is_an_error_at_once(far: Url, web: served.Web) -> None:
    (web.folder / "set" / "train-000001.tar").unlink()
    index = Index.open(far)
    with pytest.raises(DataError, match=rf"{far}/train-000001.tar: no such file"):
        everything(index)
    assert web.gets["set/train-000001.tar"] == 1


def test_a_missing_dataset_is_an_error_at_once(far: Url, web: served.Web) -> None:
    with pytest.raises(DataError, match=r"other/dataset.yaml: no such file"):
        Index.open(Url(web.url, far.cache) / "other")


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
def test_a_loader_says_what_is_missing(far: Url, web: served.Web, loader: LoaderName) -> None:
    (web.folder / "set" / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar: no such file"):
        batches(Index.open(far), loader)


def test_what_fails_for_a_moment_is_tried_again(stored: Index, far: Url, web: served.Web) -> None:
    web.fault = lambda path, number, data: 503 if number in (1, 2) else data
    assert everything(Index.open(far)) == everything(stored)
    assert web.gets["set/train-000000.tar"] == 3


def test_what_fails_on_is_reported(far: Url, web: served.Web) -> None:
    index = Index.open(far)
    web.fault = lambda path, number, data: 503
    with pytest.raises(DataError, match=r"train-000000.tar: cannot be read .*503.*tried 5 times"):
        everything(index)
    assert web.gets["set/train-000000.tar"] == 5


def test_what_is_refused_is_reported_at_once(far: Url, web: served.Web) -> None:
    web.fault = lambda path, number, data: 403
    with pytest.raises(DataError, match=r"dataset.yaml: cannot be read .*403"):
        Index.open(far)
    assert web.gets["set/dataset.yaml"] == 1


def flipped(data: bytes) -> bytes:
    return data[:len(data) // 2] + bytes(byte ^ 255 for byte in data[len(data) // 2:])


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], flipped, lambda data: b""],
                         ids=["short", "flipped", "empty"])
def test_a_damaged_download_is_fetched_once_more(
    stored: Index, far: Url, web: served.Web, damage: Callable[[bytes], bytes]
) -> None:
    index = Index.open(far)
    web.fault = lambda path, number, data: damage(data) if number == 1 else data
    assert everything(index) == everything(stored)
    assert {web.gets[f"set/{name}"] for name in stored.shards} == {2}
    web.fault = lambda path, number, data: damage(data)
    shutil.rmtree(far.cache.folder)  # type: ignore[arg-type]
    far.cache.folder.mkdir()  # type: ignore[union-attr]
    web.gets.clear()
    with pytest.raises(DataError, match=r"train-000000.tar.*(cut short at its source|checksum)"):
        everything(index)
    assert web.gets["set/train-000000.tar"] == 2


def test_a_damaged_index_is_fetched_again_the_next_time(far: Url, web: served.Web) -> None:
    web.fault = lambda path, number, data: data[:-999] if path.endswith(".arrow") and number == 1 else data
    with pytest.raises(DataError, match=rf"{far}/index.arrow is not a whole Arrow file"):
        Index.open(far)
    Index.open(far)


def test_a_changed_dataset_shares_no_copies(
    photographs: list[Record], stored: Index, far: Url, web: served.Web, shard: Callable[..., Index], cache: Cache
) -> None:
    """Neither one of other images, nor one of the same images in other shards, whose fingerprint is the same."""
    from embae.datasets.sharding.write_shards import write_shards
    before = Index.open(far)
    everything(before)
    shutil.rmtree(web.folder / "set")
    resharded = write_shards(
        "set", photographs, web.folder, source={}, options=ShardOptions(workers=1, images_per_shard=8, size=(72, 36))
    )
    after = Index.open(far)
    assert after.fingerprint == before.fingerprint and after.copies != before.copies
    assert everything(after) == everything(resharded) == everything(stored)
    shutil.rmtree(web.folder / "set")
    others = write_shards(
        "set", photographs[:16], web.folder, source={}, options=ShardOptions(workers=1, images_per_shard=12)
    )
    assert everything(Index.open(far)) == everything(others)
    assert len({path.parent for path in copies(cache)}) == 3


def test_who_reads_on_after_a_change_gets_no_other_images(photographs: list[Record], far: Url, web: served.Web) -> None:
    from embae.datasets.sharding.write_shards import write_shards
    index = Index.open(far)
    shutil.rmtree(web.folder / "set")
    write_shards("set", photographs[::-1], web.folder, source={}, options=ShardOptions(workers=1, images_per_shard=12))
    with pytest.raises(DataError, match=r"checksum|bytes"):
        everything(index)


def test_names_in_an_index_stay_beside_it(far: Url, web: served.Web) -> None:
    path = web.folder / "set" / "index.arrow"
    data = path.read_bytes()
    assert b"train-000001.tar" in data
    path.write_bytes(data.replace(b"train-000001.tar", b"../rain-00001.ta"))
    with pytest.raises(DataError, match="not the name of a tar beside it"):
        Index.open(far)
    assert set(web.gets) == {"set/dataset.yaml", "set/index.arrow"}


def test_a_file_without_end_does_not_fill_the_disk(far: Url, web: served.Web, tmp_path: Path) -> None:
    index = Index.open(far)
    index.root = Url(str(far), Cache(folder=tmp_path / "small", gib=0.5 * MIB))
    web.fault = lambda path, number, data: data + bytes(8 << 20)
    with pytest.raises(DataError, match=r"larger than the 524,288 bytes that data.cache may hold"):
        everything(index)


def test_a_folder_of_others_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, web: served.Web) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "t"))
    (theirs := tmp_path / "t" / f"embae-cache-{os.getuid()}").mkdir(parents=True)
    theirs.chmod(0o777)
    with pytest.raises(DataError, match=r"others may write there; set data.cache.folder"):
        Index.open(Url(web.url) / "set")
    theirs.chmod(0o700)
    Index.open(Url(web.url) / "set")


def test_a_merged_set_stands_for_its_members_there_too(
    photographs: list[Record], stored: Index, web: served.Web, cache: Cache, tmp_path: Path
) -> None:
    others = [replace(record, pid=number) for number, record in enumerate(photographs[:9])]
    other = write_shards("other", others, tmp_path / "web", source={}, options=ShardOptions(workers=1))
    merge([tmp_path / "web" / "set", tmp_path / "web" / "other"], tmp_path / "web" / "both", {}, duplicates=False)
    root = Url(web.url, cache)
    assert is_merged(root / "both") and not is_merged(root / "set") and not is_merged(root / "nothing")
    found = Merged.open(root / "both")
    assert [index.name for index in found.indexes] == [stored.name, "other"] and found.name == "both"
    assert [index.fingerprint for index in found.indexes] == [stored.fingerprint, other.fingerprint]
    view = View(found.indexes, "train")
    assert view.column("crc32", np.arange(len(view))).tolist() == [*stored.crc32[stored.rows("train")], *other.crc32]


@pytest.mark.parametrize("path", ["../../elsewhere", "/etc", "../../127.0.0.1:1/set"])
def test_a_merged_set_stays_on_its_server(far: Url, path: str) -> None:
    with pytest.raises(DataError, match=r"leads out of http://127\.0\.0\.1"):
        far.resolve(path)
    assert str(far.resolve("../other")) == str(far).removesuffix("set") + "other"
