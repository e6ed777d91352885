"""LUPerson and LUPerson-NL, as folders and as LMDB environments that are written as the authors write them."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from embae.datasets.errors import DataError
from embae.datasets.readers import lmdb_images
from embae.datasets.readers.read import read_records
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards


def environment(folder: Path, images: dict[str, bytes]) -> Path:
    """An environment with a list of keys beside it."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 20) as opened, opened.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    (folder.parent / "keys.pkl").write_bytes(pickle.dumps(list(images)))
    return folder


def seen(records):
    return [(one.key, one.split, one.pid, one.camid) for one in records]


def test_folders_of_luperson(draw):
    root = draw(["usa/boston/v2/00000001_0001.jpg", "usa/boston/v1/00000001_0001.jpg", "italy/rome/00000007_0002.jpg"])
    assert seen(read_records("luperson", root, {})) == [
        ("italy_rome_00000007_0002", "train", None, 0), ("usa_boston_v1_00000001_0001", "train", None, 1),
        ("usa_boston_v2_00000001_0001", "train", None, 2),
    ]  # fmt: skip


def test_folders_of_luperson_nl(draw):
    root = draw(["usa/boston/v2/000017_0000123_04.jpg", "usa/boston/v1/000017_0000001_00.jpg",
                 "usa/boston/v1/000003_0000001_01.jpg"])
    assert seen(read_records("luperson-nl", root, {})) == [
        ("usa_boston_v1_000003_0000001_01", "train", 3, 0), ("usa_boston_v1_000017_0000001_00", "train", 17, 0),
        ("usa_boston_v2_000017_0000123_04", "train", 17, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("inside", [".", "lmdb", "lup_lmdb"])
def test_environments_are_found_and_sharded(draw, tmp_path, inside):
    """Their images come through worker processes, byte for byte."""
    data = (draw(["a.jpg"]) / "a.jpg").read_bytes()
    root = tmp_path / "set"
    environment(root / inside, {"00_00_0001_00000000": data, "00_00_0000_00000002": data, "01_00_0000_00000000": data})
    records = read_records("luperson", root, {})
    assert seen(records) == [("00_00_0000_00000002", "train", None, 0), ("00_00_0001_00000000", "train", None, 1),
                             ("01_00_0000_00000000", "train", None, 2)]
    index = write_shards(
        "lup", records, tmp_path / "shards", source={}, options=ShardOptions(workers=2, images_per_shard=2)
    )
    assert len(index) == 3 and not index.labelled.any() and set(index.size.tolist()) == {len(data)}


def test_an_environment_of_luperson_nl(tmp_path):
    environment(tmp_path / "lmdb", {"00002_000017_0000123_04": b"x", "00001_000017_0000001_00": b"y"})
    records = read_records("luperson-nl", tmp_path, {})
    assert seen(records) == [("00001_000017_0000001_00", "train", 17, 1), ("00002_000017_0000123_04", "train", 17, 2)]
    assert records[1].image.read() == b"x"


def test_threads_that_read_their_first_images_at_once(tmp_path, monkeypatch):
    keys = [f"00001_000001_0000001_{number:02d}" for number in range(4)]
    folder = environment(tmp_path / "lmdb", dict.fromkeys(keys, b"x"))
    opened = lmdb.open

    def slow(*arguments, **options):
        found = opened(*arguments, **options)
        time.sleep(0.05)  # open, and nobody else knows yet
        return found

    monkeypatch.setattr(lmdb, "open", slow)
    lmdb_images.open_in_process.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda key: lmdb_images.LmdbImage(folder, key).read(), keys)) == [b"x"] * 4


def test_the_list_of_keys_is_not_unpickled(tmp_path):
    environment(tmp_path / "lmdb", {"00_00_0001_00000000": b"x"})
    (tmp_path / "keys.pkl").write_bytes(b"cposix\nsystem\n(S'touch gone'\ntR.")
    assert len(read_records("luperson", tmp_path, {})) == 1


def test_what_is_wrong_is_reported(draw, tmp_path):
    environment(tmp_path / "nl" / "lmdb", {"00002_000017_0000123_04": b"x"})
    records = read_records("luperson-nl", tmp_path / "nl", {})
    with pytest.raises(DataError, match=r"keys are not COUNTRY_CITY_VIDEO_IMAGE: 00002_.*; shard it with the source"):
        read_records("luperson", environment(tmp_path / "odd", {"00002_000017": b"x"}), {})
    environment(tmp_path / "none" / "lmdb", {})
    with pytest.raises(DataError, match="contains no image"):
        read_records("luperson", tmp_path / "none", {})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"no" * 5000)
    with pytest.raises(DataError, match="not an LMDB environment that can be read"):
        read_records("luperson", tmp_path / "damaged", {})
    with pytest.raises(DataError, match=r"data.mdb:gone: is no longer there"):
        type(records[0].image)(tmp_path / "nl" / "lmdb", "gone").read()
    with pytest.raises(DataError, match=r"images are not named VIDEO/PID_FRAME_PERSON.jpg: v/1_2.jpg \(1 in all\)"):
        read_records("luperson-nl", draw(["v/1_2.jpg"]), {})
