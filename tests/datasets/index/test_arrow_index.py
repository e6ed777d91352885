"""The index as a file: what is written is what is read, and what does not belong together is refused."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from embae.datasets.errors import DataError
from embae.datasets.index import columns as index_columns
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.columns import Columns
from embae.datasets.index.summary import fingerprint
from embae.datasets.index.writer import write_index

SIZE = 1000  # bytes of every pretended image


def columns(per_split: int = 40, per_shard: int = 16) -> Columns:
    """Three splits of identities of four images, the last tenth of each split unlabelled."""
    n = 3 * per_split
    within = np.arange(n) % per_split
    split = (np.arange(n) // per_split).astype(np.int8)
    labelled = within < per_split * 9 // 10
    shards, numbers, places = [], [], []
    for row in range(n):
        if within[row] % per_shard == 0:
            shards.append(f"{('train', 'query', 'gallery')[split[row]]}-{within[row] // per_shard:06d}.tar")
        numbers.append(len(shards) - 1)
        places.append(within[row] % per_shard)
    return Columns(
        keys=pa.array([f"k{row:07d}" for row in range(n)]),
        split=split,
        pid=np.where(labelled, within // 4, -1).astype(np.int64),
        labelled=labelled,
        camid=np.where(labelled, within % 4 // 2, 7).astype(np.int32),
        role=np.where(labelled, 0, 1).astype(np.int8),
        shard=np.array(numbers, np.int32),
        offset=np.array(places, np.int64) * 2048 + 512,
        size=np.full(n, SIZE, np.int32),
        crc32=(np.arange(n) * 2654435761 % 2**32).astype(np.uint32),
        height=np.full(n, 256, np.int32),
        width=np.full(n, 128, np.int32),
        shards=shards,
    )


def make(folder: Path, content: Columns, name: str = "one") -> Path:
    folder.mkdir(parents=True)
    for shard in content.shards:
        with (folder / shard).open("wb") as file:
            file.truncate(17 * 2048)
    write_index(folder, name, content, source={"reader": "none"}, about={"licence": "none at all"})
    return folder


def test_reads_what_was_written(tmp_path: Path) -> None:
    content = columns()
    index = Index.open(make(tmp_path / "one", content))
    assert (index.name, len(index), index.shards, index.image) == ("one", 120, content.shards, (256, 128))
    for name in ("split", "pid", "labelled", "camid", "role", "shard", "offset", "size", "crc32", "height", "width"):
        found = getattr(index, name)
        np.testing.assert_array_equal(found, getattr(content, name), err_msg=name)
        assert found.dtype == getattr(content, name).dtype, name
    assert [index.key(row) for row in (0, 119)] == ["k0000000", "k0000119"]
    assert [index.rows(s) for s in ("train", "query", "gallery")] == [slice(0, 40), slice(40, 80), slice(80, 120)]
    assert index.count("query") == 40
    assert index.card["licence"] == "none at all"
    assert index.card["counts"]["gallery"] == {
        "images": 40, "identities": 9, "unlabelled": 4, "roles": {"person": 36, "distractor": 4, "junk": 0},
        "cameras": {0: 18, 1: 18, 7: 4},
    }  # fmt: skip


def test_an_empty_split_has_no_rows(tmp_path: Path) -> None:
    whole = columns()
    keep = whole.split != 1
    arrays = {name: value[keep] for name, value in vars(whole).items() if isinstance(value, np.ndarray)}
    numbers = np.unique(arrays["shard"], return_inverse=True)[1].astype(np.int32)
    content = replace(whole, **{**arrays, "shard": numbers}, keys=whole.keys.filter(pa.array(keep)),
                      shards=[name for name in whole.shards if not name.startswith("query")])
    index = Index.open(make(tmp_path / "one", content))
    assert index.count("query") == 0
    assert index.rows("gallery") == slice(40, 80)


def test_all_labelled_and_differing_sizes(tmp_path: Path) -> None:
    content = columns()
    content = replace(content, labelled=np.ones(120, bool), pid=np.arange(120) % 40)
    content = replace(content, height=content.height + content.split)
    index = Index.open(make(tmp_path / "one", content))
    assert index.labelled.all()
    assert index.image is None


def test_columns_are_views_that_processes_share(tmp_path: Path) -> None:
    index = Index.open(make(tmp_path / "one", columns()))
    for name in ("split", "pid", "camid", "shard", "offset", "crc32"):
        column = getattr(index, name)
        assert not column.flags.owndata and not column.flags.writeable, name
    # A worker process is sent the folder, not the rows.
    sent = pickle.dumps(index)
    assert len(sent) < 500
    assert pickle.loads(sent).fingerprint == index.fingerprint


def test_opening_does_not_take_longer_with_more_rows(tmp_path: Path) -> None:
    n, per_shard = 1_000_000, 4096
    row = np.arange(n)
    content = Columns(
        keys=pa.array(np.char.mod("k%07d", row)), split=np.zeros(n, np.int8), pid=row // 20, labelled=row < n - 1000,
        camid=np.zeros(n, np.int32), role=np.zeros(n, np.int8), shard=(row // per_shard).astype(np.int32),
        offset=row % per_shard * 11_000 + 512, size=np.full(n, 10_000, np.int32), crc32=np.zeros(n, np.uint32),
        height=np.full(n, 256, np.int32), width=np.full(n, 128, np.int32),
        shards=[f"train-{number:06d}.tar" for number in range(-(-n // per_shard))],
    )  # fmt: skip
    folder = tmp_path / "many"
    folder.mkdir()
    for shard in content.shards:
        with (folder / shard).open("wb") as file:
            file.truncate(per_shard * 11_000)
    write_index(folder, "many", content, source={})
    start = time.perf_counter()
    index = Index.open(folder)
    took = time.perf_counter() - start
    assert index.rows("train") == slice(0, n)
    assert took < 0.3, f"{took:.2f} s"  # 0.01 s on a quiet machine; one look at every row in Python takes longer


def test_fingerprint_is_of_the_images_not_of_the_shards() -> None:
    content = columns()
    same = replace(content, shard=np.zeros(120, np.int32), shards=["all.tar"], offset=np.arange(120) * 5000)
    assert fingerprint(same) == fingerprint(content)
    # Nor of what lies under an unknown pid.
    assert fingerprint(replace(content, pid=np.where(content.labelled, content.pid, 99))) == fingerprint(content)


@pytest.mark.parametrize("name", ["keys", "split", "pid", "labelled", "camid", "role", "crc32"])
def test_fingerprint_changes_with(name: str) -> None:
    content = columns()
    if name == "keys":
        changed = pa.array(["k0000000", "k000000x", *content.keys.to_pylist()[2:]])
    else:
        changed = getattr(content, name).copy()
        changed[1] = 0 if changed[1] else 1
    assert fingerprint(replace(content, **{name: changed})) != fingerprint(content)


def test_fingerprint_tells_where_one_key_ends() -> None:
    content = columns()
    keys = content.keys.to_pylist()
    moved = [keys[0] + keys[1][0], keys[1][1:], *keys[2:]]
    assert fingerprint(replace(content, keys=pa.array(moved))) != fingerprint(content)


def swap(values: np.ndarray, a: int, b: int) -> np.ndarray:
    values = values.copy()
    values[[a, b]] = values[[b, a]]
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"keys": pa.array(["k0000001", *c.keys.to_pylist()[1:]])}, "1 keys appear more than once"),
        (lambda c: {"keys": c.keys.take(pa.array(swap(np.arange(120), 0, 1)))}, "row 1 .* out of order"),
        (lambda c: {"camid": swap(c.camid, 0, 3)}, "row 1 .* out of order"),
        (lambda c: {"pid": swap(c.pid, 0, 4)}, "out of order"),
        (lambda c: {"labelled": swap(c.labelled, 0, 39)}, "out of order"),
        (lambda c: {"split": swap(c.split, 0, 119)}, "out of order"),
        (lambda c: {"role": c.role + 3}, "column role has codes outside 0 … 2"),
        (lambda c: {"shard": swap(c.shard, 0, 119)}, "not in row order"),
        (lambda c: {"offset": swap(c.offset, 0, 1)}, "offsets do not rise"),
        (lambda c: {"shards": ["pipe:touch gone", *c.shards[1:]]}, "'pipe:touch gone' is not the name of a tar"),
        (lambda c: {"shards": ["../other.tar", *c.shards[1:]]}, "'../other.tar' is not the name of a tar"),
    ],
)
def test_refuses_to_write(tmp_path: Path, change, message: str) -> None:
    content = columns()
    with pytest.raises(DataError, match=message):
        write_index(tmp_path, "one", replace(content, **change(content)), source={})
    assert not list(tmp_path.iterdir())


def edit_card(folder: Path, **values: object) -> None:
    card = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**card, **values}))


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def other_schema(folder: Path) -> None:
    table = pa.ipc.open_file(folder / "index.arrow").read_all()
    table = table.set_column(3, "camid", table.column("camid").cast(pa.int64())).combine_chunks()
    with pa.ipc.new_file(folder / "index.arrow", table.schema) as writer:
        writer.write_table(table)


def two_batches(folder: Path) -> None:
    table = pa.ipc.open_file(folder / "index.arrow").read_all()
    with pa.ipc.new_file(folder / "index.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def no_split(folder: Path) -> None:
    counts = yaml.safe_load((folder / "dataset.yaml").read_text())["counts"]
    del counts["query"]
    edit_card(folder, counts=counts)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset.yaml").unlink(), "one is not a complete dataset: it has no dataset.yaml.*embae shard"),
        (lambda f: (f / "dataset.yaml").write_text("{"), "dataset.yaml cannot be read.*shard the dataset again"),
        (lambda f: (f / "dataset.yaml").write_bytes(b"\xff\xfe\xff"), "dataset.yaml cannot be read"),
        (lambda f: (f / "dataset.yaml").write_text("some: thing"), "not the card of a sharded dataset"),
        (lambda f: edit_card(f, format=2), r"format 2, this version of embae reads format 1.*shard the dataset again"),
        (lambda f: edit_card(f, image=[256]), r"does not have image: \[height, width\] or null"),
        (no_split, "does not have counts: a mapping with 'images' for each split"),
        (lambda f: edit_card(f, fingerprint="0" * 64), "has the fingerprint .* says 0{12}: they do not belong to"),
        (lambda f: (f / "index.arrow").unlink(), "index.arrow is missing, though dataset.yaml is there"),
        (lambda f: cut(f / "index.arrow", 3000), "index.arrow is not a whole Arrow file"),
        (lambda f: (f / "index.arrow").write_bytes(b""), "index.arrow is not a whole Arrow file"),
        (other_schema, "other columns than format 1: found .*camid: int64.* expected camid: int32"),
        (two_batches, "3 record batches, expected one"),
        (lambda f: (f / "query-000001.tar").unlink(), r"1 of 9 shards are missing \(query-000001.tar\)"),
        (lambda f: cut(f / "query-000001.tar", 4000), "query-000001.tar has 4,000 bytes, its last image ends at"),
    ],
)
def test_refuses_to_open(tmp_path: Path, damage, message: str) -> None:
    folder = make(tmp_path / "one", columns())
    Index.open(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        Index.open(folder)


@pytest.mark.parametrize("wrong", ["images", "labels"])
def test_refuses_the_index_of_another_dataset(tmp_path: Path, wrong: str) -> None:
    folder = make(tmp_path / "one", columns())
    content = columns(80) if wrong == "images" else replace(columns(), crc32=np.zeros(120, np.uint32))
    other = make(tmp_path / "two", content, "two")
    (other / "index.arrow").rename(folder / "index.arrow")
    message = "has 240 rows, dataset.yaml counts 120" if wrong == "images" else "they do not belong to the same dataset"
    with pytest.raises(DataError, match=message):
        Index.open(folder)


def test_names_the_datasets_that_are_there(tmp_path: Path) -> None:
    make(tmp_path / "market1501", columns())
    make(tmp_path / "dukemtmc", columns())
    (tmp_path / "msmt17.partial").mkdir()
    with pytest.raises(DataError, match="market1510: no such dataset; datasets beside it: dukemtmc, market1501;"):
        Index.open(tmp_path / "market1510")
    with pytest.raises(DataError, match="it contains the datasets dukemtmc, market1501: name one of them"):
        Index.open(tmp_path)
    with pytest.raises(DataError, match=r"its sharding was interrupted .*run the same embae shard again"):
        Index.open(tmp_path / "msmt17")
    with pytest.raises(DataError, match="there are no datasets in "):
        Index.open(tmp_path / "nowhere" / "market1501")


def test_a_card_cannot_run_code(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", columns())
    (folder / "dataset.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\nformat: 1\n")
    with pytest.raises(DataError, match="cannot be read"):
        Index.open(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pipe:touch ran", "http://localhost/x.tar", "/etc/x.tar", "../one/x.tar"])
def test_a_shard_name_is_never_a_url_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = columns()
    monkeypatch.setattr(index_columns, "SHARD_NAME", re.compile(".*"))  # a writer that is not ours
    folder = make(tmp_path / "one", content)
    write_index(folder, "one", replace(content, shards=[name, *content.shards[1:]]), source={})
    with pytest.raises(DataError, match=f"{re.escape(repr(name))} is not the name of a tar beside it"):
        Index.open(folder)


def test_reading_an_index_needs_no_heavy_library() -> None:
    heavy = ("torch", "nvidia", "webdataset", "PIL")
    code = f"import sys, embae.datasets.index.arrow_index; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
