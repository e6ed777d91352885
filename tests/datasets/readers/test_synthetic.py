"""What a synthetic domain lists."""

import re
from collections import defaultdict

import pytest

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers.synthetic import DOMAIN_NAMES, list_records


@pytest.fixture(scope="module")
def listed() -> list[Record]:
    return list_records("plaza", identities=42, cameras=4, images_per_camera=3)


def test_keys_name_one_image_each(listed: list[Record]) -> None:
    keys = [record.key for record in listed]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)
    assert len({record.image for record in listed}) == len(keys)
    assert len({str(record.image) for record in listed}) == len(keys)


def test_two_thirds_of_the_people_are_trained_on(listed: list[Record]) -> None:
    seen: dict[str, set[int | None]] = defaultdict(set)
    for record in listed:
        if record.role == "person":
            seen[record.split].add(record.pid)
    assert len(seen["train"]) == 28
    assert seen["query"] == seen["gallery"]
    assert len(seen["query"]) == 14
    assert not seen["train"] & seen["query"]


def test_every_query_is_found_on_another_camera(listed: list[Record]) -> None:
    cameras: dict[int | None, set[int]] = defaultdict(set)
    for record in listed:
        if record.split == "gallery" and record.role == "person":
            cameras[record.pid].add(record.camid)
    queries = [record for record in listed if record.split == "query"]
    assert all(cameras[query.pid] - {query.camid} for query in queries)
    # one query for a person and a camera, as in Market-1501
    assert len({(query.pid, query.camid) for query in queries}) == len(queries)


def test_not_everybody_is_seen_by_every_camera(listed: list[Record]) -> None:
    cameras: dict[int | None, set[int]] = defaultdict(set)
    for record in listed:
        if record.role == "person":
            cameras[record.pid].add(record.camid)
    counts = {len(seen) for seen in cameras.values()}
    assert min(counts) >= 2
    assert len(counts) > 1
    assert set.union(*cameras.values()) == {1, 2, 3, 4}


def test_distractors_and_junk_are_in_the_gallery_alone(listed: list[Record]) -> None:
    people = {record.pid for record in listed if record.role == "person"}
    distractors = [record for record in listed if record.role == "distractor"]
    junk = [record for record in listed if record.role == "junk"]
    assert {record.split for record in distractors + junk} == {"gallery"}
    assert len({record.pid for record in distractors}) == 4
    assert not {record.pid for record in distractors} & people
    assert len(junk) == 4
    assert all(record.pid is None for record in junk)


def test_listing_is_repeatable() -> None:
    assert list_records("campus", identities=8) == list_records("campus", identities=8)
    assert list_records("campus", identities=8) != list_records("campus", identities=8, seed=1)


def test_defaults_are_of_the_quickstart_size() -> None:
    for domain in DOMAIN_NAMES:
        train = [record for record in list_records(domain) if record.split == "train"]
        assert len({record.pid for record in train}) == 180
        assert 1800 <= len(train) <= 2500


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"identities": 5}, "identities is 5; expected at least 6"),
        ({"cameras": 1}, "cameras is 1; expected at least 2"),
        ({"images_per_camera": 1}, "images_per_camera is 1; expected at least 2"),
        ({"height": 16}, "height is 16; expected at least 32"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
    ],
)
def test_numbers_that_are_too_small_are_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        list_records("mall", **options)


def test_an_unknown_domain_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'moon'.*plaza, station, campus, mall, harbour"):
        list_records("moon")  # type: ignore[arg-type]
