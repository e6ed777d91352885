"""Synthetic domains: people and cameras that embae draws, so that everything can be tried without a dataset."""

from __future__ import annotations

from typing import Literal, get_args

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record, Role, Split
from embae.datasets.readers.reader import Reader

DomainName = Literal["plaza", "station", "campus", "mall", "harbour"]
DOMAIN_NAMES: tuple[DomainName, ...] = get_args(DomainName)


def list_records(
    domain: DomainName,
    *,
    seed: int = 0,
    identities: int = 270,
    cameras: int = 5,
    images_per_camera: int = 3,
    height: int = 144,
) -> list[Record]:
    """The images of a domain, drawn when they are read.

    Two thirds of the identities are for training, one third for testing. At least two cameras see each person, often
    not all of them. As in Market-1501, a test person has one query for each camera, and the other images are in the
    gallery. The gallery also has distractors (one person for ten identities, never queried) and junk (bad crops, one
    for ten identities).

    Args:
        domain: The place: ``plaza``, ``station``, ``campus``, ``mall`` or ``harbour``. Each has its own
            wardrobe, scenery and kind of camera.
        seed: Another seed draws other people and other cameras of the same kind.
        identities: People of the train and test splits together, pids 1 to ``identities``.
        cameras: Number of cameras, camids 1 to ``cameras``.
        images_per_camera: Images of a person from each camera that sees it.
        height: Of the images, in pixels; they are half as wide. A good size is slightly larger than training reads.

    Raises:
        DataError: The domain is unknown, or the numbers are too small to train and test on.
    """
    from embae.datasets.synthetic.image import SyntheticImage  # it imports what draws, which no other reader needs

    _check_numbers(domain, {"seed": seed, "identities": identities, "cameras": cameras,
                            "images_per_camera": images_per_camera, "height": height})
    listed: list[Record] = []

    def add(split: Split, pid: int, camid: int, shot: int, role: Role = "person") -> None:
        junk = role == "junk"
        image = SyntheticImage(domain, seed, pid, camid, shot, height, junk)
        key = f"{domain}-{'junk' if junk else 'p'}{pid:06d}-c{camid:03d}-s{shot:03d}"
        listed.append(Record(key, split, None if junk else pid, camid, image, role))

    for pid in range(1, identities + 1):
        train = pid <= identities - identities // 3
        for camid in _cameras_of(domain, seed, pid, cameras):
            for shot in range(images_per_camera):
                add("train" if train else "gallery" if shot else "query", pid, camid, shot)

    few = max(1, identities // 10)
    for pid in range(identities + 1, identities + few + 1):
        for camid in _cameras_of(domain, seed, pid, cameras):
            for shot in range(images_per_camera):
                add("gallery", pid, camid, shot, "distractor")
    for pid in range(identities + few + 1, identities + 2 * few + 1):
        add("gallery", pid, _cameras_of(domain, seed, pid, cameras)[0], 0, "junk")
    return listed


def _cameras_of(domain: str, seed: int, pid: int, cameras: int) -> list[int]:
    """The cameras that see a person: at least two, so that it can be found again, and not always all."""
    from embae.datasets.synthetic.streams import stream

    rng = stream(domain, seed, "seen-by", pid, cameras)
    count = int(rng.integers(min(cameras, max(2, (cameras + 1) // 2)), cameras + 1))
    return sorted((1 + rng.permutation(cameras)[:count]).tolist())


def _check_numbers(domain: str, numbers: dict[str, int]) -> None:
    if domain not in DOMAIN_NAMES:
        raise DataError(f"found the synthetic domain {domain!r}; expected one of: {', '.join(DOMAIN_NAMES)}")
    smallest = {
        "seed": (0, "seeds start at 0"),
        "identities": (6, "a third of them is for testing, and that needs two"),
        "cameras": (2, "the match of a query is searched for on another camera"),
        "images_per_camera": (2, "one is the query, the others are the gallery"),
        "height": (32, "smaller people cannot be told apart"),
    }
    for name, (least, reason) in smallest.items():
        if numbers[name] < least:
            raise DataError(f"synthetic {domain}: {name} is {numbers[name]}; expected at least {least}: {reason}")


READER = Reader("synthetic", "people and cameras that embae draws", list_records)
