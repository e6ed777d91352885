"""Which images a domain has: who is seen by which camera, and what is trained and tested on."""

from __future__ import annotations

from typing import Literal, get_args

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record, Role, Split
from embae.datasets.synthetic.image import SyntheticImage
from embae.datasets.synthetic.streams import stream

DomainName = Literal["plaza", "station", "campus", "mall", "harbour"]
DOMAIN_NAMES: tuple[DomainName, ...] = get_args(DomainName)


def records(
    domain: DomainName,
    *,
    seed: int = 0,
    identities: int = 270,
    cameras: int = 5,
    images_per_camera: int = 3,
    height: int = 144,
) -> list[Record]:
    """The images of a domain, drawn when they are read.

    Two thirds of the identities are for training, one for testing. Each is seen by two cameras at least, not always by
    all. As in Market-1501, a test person gives one query for each camera and the other images to the gallery, to which
    come distractors (a person in ten, never queried) and junk (bad crops, one for ten identities).

    Args:
        domain: The place: ``plaza``, ``station``, ``campus``, ``mall`` or ``harbour``. Each has a wardrobe, scenery
            and a kind of camera of its own.
        seed: Another seed gives other people and other cameras, of the same kind.
        identities: People of the train and test splits together, pids 1 to ``identities``.
        cameras: How many there are, camids 1 to ``cameras``.
        images_per_camera: Images of a person by a camera that sees it.
        height: Of the images, in pixels; they are half as wide. Somewhat more than training reads is a good size.

    Raises:
        DataError: An unknown domain, or numbers with which nothing could be trained or tested.
    """
    _check(domain, seed, identities, cameras, images_per_camera, height)
    listed: list[Record] = []

    def add(split: Split, pid: int, camid: int, shot: int, role: Role = "person") -> None:
        junk = role == "junk"
        image = SyntheticImage(domain, seed, pid, camid, shot, height, junk)
        key = f"{domain}-{'junk' if junk else 'p'}{pid:06d}-c{camid:03d}-s{shot:03d}"
        listed.append(Record(key, split, None if junk else pid, camid, image, role))

    for pid in range(1, identities + 1):
        train = pid <= identities - identities // 3
        for camid in _seen_by(domain, seed, pid, cameras):
            for shot in range(images_per_camera):
                add("train" if train else "gallery" if shot else "query", pid, camid, shot)

    few = max(1, identities // 10)
    for pid in range(identities + 1, identities + few + 1):
        for camid in _seen_by(domain, seed, pid, cameras):
            for shot in range(images_per_camera):
                add("gallery", pid, camid, shot, "distractor")
    for pid in range(identities + few + 1, identities + 2 * few + 1):
        add("gallery", pid, _seen_by(domain, seed, pid, cameras)[0], 0, "junk")
    return listed


def _seen_by(domain: str, seed: int, pid: int, cameras: int) -> list[int]:
    """The cameras that see a person: at least two, so that it can be found again, and not always all."""
    rng = stream(domain, seed, "seen-by", pid, cameras)
    count = int(rng.integers(min(cameras, max(2, (cameras + 1) // 2)), cameras + 1))
    return sorted((1 + rng.permutation(cameras)[:count]).tolist())


def _check(domain: str, seed: int, identities: int, cameras: int, images_per_camera: int, height: int) -> None:
    if domain not in DOMAIN_NAMES:
        raise DataError(f"there is no synthetic domain {domain!r}; choose one of: {', '.join(DOMAIN_NAMES)}")
    smallest = {
        "seed": (seed, 0, "a seed counts from 0"),
        "identities": (identities, 6, "a third of them is for testing, and that needs two"),
        "cameras": (cameras, 2, "a query is looked for on another camera than its own"),
        "images_per_camera": (images_per_camera, 2, "one is the query, the others are the gallery"),
        "height": (height, 32, "smaller people cannot be told apart"),
    }
    for name, (value, least, why) in smallest.items():
        if value < least:
            raise DataError(f"synthetic {domain}: {name} is {value}, but has to be {least} at least: {why}")
