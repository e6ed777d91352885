import io
import pickle

import h5py
import numpy
import PIL.Image
import pytest
import scipy.io

from embae.datasets.errors import DataError
from embae.datasets.readers.read import read_records

PEOPLE = {1: 3, 2: 1}  # per camera pair
SHOTS = (1, 2, 6)  # of the 10 that a person may have; the others are empty


def name(pair, person, shot):
    return f"{pair}_{person:03d}_{1 if shot <= 5 else 2}_{shot:02d}"


NAMES = [
    name(pair, person, shot) for pair, people in PEOPLE.items() for person in range(1, people + 1) for shot in SHOTS
]


def pixels(pair, person, shot):
    return numpy.random.default_rng([pair, person, shot]).integers(0, 256, (5, 4, 3), dtype=numpy.uint8)


@pytest.fixture
def mat(tmp_path):
    """cuhk-03.mat as MATLAB writes it: cells are arrays of references into #refs#, axes reversed, empty cells 1-D."""
    with h5py.File(tmp_path / "cuhk-03.mat", "w") as file:
        stored = file.create_group("#refs#")

        def cell(content):
            array = numpy.empty(numpy.shape(content), dtype=object)
            for index in numpy.ndindex(array.shape):
                array[index] = content[index]
            dataset = stored.create_dataset(f"c{len(stored)}", array.shape, dtype=h5py.ref_dtype)
            dataset[...] = array
            return dataset

        empty = stored.create_dataset("empty", data=numpy.zeros(2, "uint64"))
        for labels in ("labeled", "detected"):
            pairs = numpy.empty((1, len(PEOPLE)), dtype=object)
            for pair, people in PEOPLE.items():
                shots = numpy.empty((10, people), dtype=object)
                for shot, person in numpy.ndindex(shots.shape):
                    image = empty
                    if shot + 1 in SHOTS:
                        data = pixels(pair, person + 1, shot + 1).T
                        image = stored.create_dataset(f"{labels}-{name(pair, person + 1, shot + 1)}", data=data)
                    shots[shot, person] = image.ref
                pairs[0, pair - 1] = cell(shots).ref
            file[labels] = cell(pairs)
        sets = numpy.empty((1, 2), dtype=object)
        for number, people in enumerate([[(1, 1), (1, 3)], [(2, 1)]]):
            sets[0, number] = stored.create_dataset(f"set{number}", data=numpy.array(people, float).T).ref
        file["testsets"] = cell(sets)
    return tmp_path


@pytest.fixture
def protocol():
    def write(folder, labels="labeled"):
        """Person 2 of pair 1 trains, view 1 of the others is query (first image only) and gallery, view 2 gallery."""
        index = {one: number for number, one in enumerate(NAMES, 1)}
        train = [number for one, number in index.items() if one.startswith("1_002")]
        query = [number for one, number in index.items() if number not in train and one.endswith("01")]
        gallery = [number for number in index.values() if number not in train + query]
        filelist = numpy.empty((len(NAMES), 1), dtype=object)
        filelist[:, 0] = [f"{one}.png" for one in NAMES]
        arrays = {"train_idx": train, "query_idx": query, "gallery_idx": gallery}
        scipy.io.savemat(
            folder / f"cuhk03_new_protocol_config_{labels}.mat",
            {"filelist": filelist} | {one: numpy.array(numbers)[:, None] for one, numbers in arrays.items()},
        )

    return write


@pytest.fixture(params=["released", "inside", "extracted"])
def official(request, protocol):
    """A root for every layout of the official images."""
    if request.param == "extracted":
        root = request.getfixturevalue("draw")(f"images_labeled/{one}.png" for one in NAMES)
    else:
        root = request.getfixturevalue("mat")
        if request.param == "inside":
            (root / "cuhk03_release").mkdir()
            (root / "cuhk-03.mat").rename(root / "cuhk03_release/cuhk-03.mat")
    protocol(root)
    return root


def test_the_new_protocol(official):
    records = {one.key: one for one in read_records("cuhk03", official, {"counts": "any"})}
    assert list(records) == sorted(NAMES)
    assert {(one.pid, one.split) for one in records.values() if one.pid == 1002} == {(1002, "train")}
    query = [(one.key, one.pid, one.camid) for one in records.values() if one.split == "query"]
    assert query == [("1_001_1_01", 1001, 1), ("1_003_1_01", 1003, 1), ("2_001_1_01", 2001, 3)]
    gallery = [(one.key, one.camid) for one in records.values() if one.split == "gallery"]
    assert gallery == [("1_001_1_02", 1), ("1_001_2_06", 2), ("1_003_1_02", 1), ("1_003_2_06", 2), ("2_001_1_02", 3),
                       ("2_001_2_06", 4)]  # fmt: skip


def test_all_and_half(official):
    assert {one.split for one in read_records("cuhk03", official, {"counts": "any", "split": "all"})} == {"train"}
    halved = read_records("cuhk03", official, {"counts": "any", "split": "half"})
    assert len({one.pid for one in halved if one.split == "train"}) == 2
    assert {one.camid % 2 for one in halved if one.split == "query"} == {1}
    assert {one.camid % 2 for one in halved if one.split == "gallery"} == {0}


def test_images_lose_nothing_and_can_be_pickled(mat):
    records = {one.key: one for one in read_records("cuhk03", mat, {"counts": "any", "split": "all"})}
    image = pickle.loads(pickle.dumps(records["2_001_2_06"].image))
    encoded = image.read()
    assert encoded.startswith(b"\x89PNG")
    numpy.testing.assert_array_equal(numpy.asarray(PIL.Image.open(io.BytesIO(encoded))), pixels(2, 1, 6))
    assert str(mat / "cuhk-03.mat") in str(image)


@pytest.mark.parametrize(("number", "test"), [("0", {1001, 1003}), ("1", {2001})])
def test_the_classic_sets(mat, number, test):
    options = {"counts": "any", "split": "classic", "test_set": number, "labels": "detected"}
    records = read_records("cuhk03", mat, options)
    assert {one.pid for one in records if one.split == "train"} == {1001, 1002, 1003, 2001} - test
    assert {(one.pid, one.camid % 2) for one in records if one.split == "query"} == {(pid, 1) for pid in test}
    assert {(one.pid, one.camid % 2) for one in records if one.split == "gallery"} == {(pid, 0) for pid in test}


@pytest.mark.parametrize("number", ["2", "-1"])
def test_a_classic_set_that_is_not_there(mat, number):
    with pytest.raises(DataError, match=f"test_set={number}: expected 0 to 1"):
        read_records("cuhk03", mat, {"counts": "any", "split": "classic", "test_set": number})


def test_an_incomplete_set_is_refused(official):
    with pytest.raises(DataError, match=r"identities 4 \(expected 1,467\).*images 12 \(expected 14,096\).*"
                                        r"train images 3 \(expected 7,368\)"):  # fmt: skip
        read_records("cuhk03", official, {})


def test_what_a_split_needs_is_named(draw):
    root = draw(f"images_detected/{one}.png" for one in NAMES)
    with pytest.raises(DataError, match=r"needs cuhk03_new_protocol_config_detected.mat.*split=half"):
        read_records("cuhk03", root, {"labels": "detected"})
    with pytest.raises(DataError, match=r"split=classic needs cuhk-03.mat"):
        read_records("cuhk03", root, {"labels": "detected", "split": "classic"})
    with pytest.raises(DataError, match=r"found none of cuhk-03.mat, images_labeled"):
        read_records("cuhk03", root, {"labels": "labeled"})


def test_images_that_the_protocol_wants_are_missing(draw, protocol):
    root = draw(f"images_labeled/{one}.png" for one in NAMES[2:])
    protocol(root)
    with pytest.raises(DataError, match=r"images are missing: 1_001_1_01, 1_001_1_02 \(2 in all\); extract"):
        read_records("cuhk03", root, {"counts": "any"})


def test_a_name_that_is_there_twice(draw):
    root = draw(["images_labeled/1_001_1_01.png", "images_labeled/1_001_1_01.jpg"])
    with pytest.raises(DataError, match="cuhk03: two images have the same name: 1_001_1_01"):
        read_records("cuhk03", root, {"counts": "any", "split": "all"})


@pytest.mark.parametrize("content", [b"no MATLAB file", b""])
def test_files_that_are_broken(tmp_path, draw, content):
    draw(f"images_labeled/{one}.png" for one in NAMES)
    (tmp_path / "cuhk03_new_protocol_config_labeled.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"config_labeled.mat: not a configuration of the new protocol"):
        read_records("cuhk03", tmp_path, {})
    (tmp_path / "cuhk-03.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"cuhk-03.mat: not the cuhk-03.mat of the release"):
        read_records("cuhk03", tmp_path, {})


@pytest.fixture
def copy(draw):
    shots = ("00", "04", "05", "09")
    return draw(f"labeled/{folder}/{person}_{shot}.jpg" for folder, person in
                (("train", "0000"), ("train", "0742"), ("val", "0000")) for shot in shots)  # fmt: skip


@pytest.mark.parametrize("inside", ["", "labeled"])
def test_the_copy_on_github(copy, inside):
    records = read_records("cuhk03", copy / inside, {"counts": "any"})
    assert [(one.key, one.split, one.pid, one.camid) for one in records if one.key.endswith(("00", "09"))] == [
        ("train_0000_00", "train", 0, 1), ("train_0000_09", "train", 0, 2), ("train_0742_00", "train", 742, 1),
        ("train_0742_09", "train", 742, 2), ("val_0000_00", "query", 1000, 1), ("val_0000_09", "gallery", 1000, 2),
    ]  # fmt: skip
    assert {one.camid for one in records if one.key.endswith("04")} == {1}
    assert {one.camid for one in records if one.key.endswith("05")} == {2}


def test_the_copy_divided_otherwise(copy):
    halved = read_records("cuhk03", copy, {"counts": "any", "split": "half"})
    assert len({one.pid for one in halved if one.split == "train"}) == 1
    assert len({one.pid for one in halved if one.split == "query"}) == 2
    assert {one.split for one in read_records("cuhk03", copy, {"counts": "any", "split": "all"})} == {"train"}


def test_what_the_copy_cannot_give(copy):
    with pytest.raises(DataError, match=r"identities 3 \(expected 843\)"):
        read_records("cuhk03", copy, {})
    with pytest.raises(DataError, match="use labels=labeled"):
        read_records("cuhk03", copy, {"labels": "detected"})
    with pytest.raises(DataError, match="classic needs"):
        read_records("cuhk03", copy, {"split": "classic", "counts": "any"})
