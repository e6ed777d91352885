"""A merged set: one name for several sharded datasets, which stay where they are.

    <root>/<merged>/merged.yaml     its members: name, folder relative to this one, fingerprint, counts, weight
    <root>/<merged>/duplicates.csv  images that two of them have in common, where these were looked for

Nothing is copied. Identities and cameras stay apart by dataset, as in every `View` of several; what a merged set adds
is the name, the weights, and that a member which has changed since is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embae.datasets.errors import DataError
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.datasets.files.yaml_files import format_yaml, parse_yaml
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, MERGED, NAME, some
from embae.datasets.remote.url import Missing, Url

if TYPE_CHECKING:
    pass

FORMAT = 1
DUPLICATES = "duplicates.csv"
AGAIN = "merge the datasets again (embae merge)"


@dataclass(frozen=True)
class Member:
    """One dataset of a merged set, as it was when they were merged.

    Attributes:
        name: The dataset's name, unique among the members.
        path: Its folder, relative to the merged set's.
        fingerprint: Of its index.
        images: Over all splits, as are `identities` and `cameras`.
        identities: Of role person.
        cameras: Physical cameras.
        weight: Its share of the merged set's labelled batches, in any unit; None where all go by their images.
    """

    name: str
    path: str
    fingerprint: str
    images: int
    identities: int
    cameras: int
    weight: float | None


@dataclass(frozen=True)
class Merged:
    """A merged set that is open.

    Attributes:
        name: The folder's name.
        root: The folder.
        members: As its card has them.
        indexes: Their indexes, in the same order.
    """

    name: str
    root: Path | Url
    members: tuple[Member, ...]
    indexes: tuple[Index, ...]

    @classmethod
    def open(cls, folder: Path | Url) -> Merged:
        """Opens a merged set and its members.

        Raises:
            DataError: The card is missing or damaged, a member is missing or damaged, or has changed since.
        """
        folder = folder if isinstance(folder, Url) else Path(folder).absolute()
        members = _read(folder / MERGED)
        return cls(str(folder).rpartition("/")[2], folder, members, tuple(_member(folder, each) for each in members))

    def weights(self, images: Mapping[str, int]) -> dict[str, float]:
        """What `PKSampler` takes for the members: together they keep the share that their images give them.

        Args:
            images: Labelled images by name; of other datasets too.
        """
        own = {member.name: member.weight or images[member.name] for member in self.members}
        scale = sum(images[name] for name in own) / sum(own.values())
        return {name: weight * scale for name, weight in own.items()}

    @property
    def weighted(self) -> bool:
        """Whether weights were given."""
        return any(member.weight is not None for member in self.members)


def is_merged(folder: Path | Url) -> bool:
    """Whether a folder is a merged set's.

    Raises:
        DataError: A url cannot be read.
    """
    if not isinstance(folder, Url):
        return os.path.isfile(folder / MERGED)  # not Path.is_file, which a name too long makes raise
    for name in (CARD, MERGED):  # in this order: to ask for what is not there, some stores want more rights
        try:
            (folder / name).read(MOST)
        except Missing:
            continue
        return name == MERGED
    return False


def check_apart(indexes: Sequence[Index]) -> None:
    """Checks that datasets can be told apart by their names, and that none of them is there twice.

    Raises:
        DataError: Naming the two.
    """
    names: dict[str, Index] = {}
    prints: dict[str, Index] = {}
    for index in indexes:
        if other := names.get(index.name):
            if os.path.realpath(str(other.root)) == os.path.realpath(str(index.root)):
                raise DataError(f"the dataset {index.name} ({index.root}) is there twice; name it once, by itself or "
                                "by one merged set")
            raise DataError(f"two datasets have the name {index.name} ({other.root}, {index.root}), which tells "
                            "identities and cameras apart; shard one of them under another name (embae shard --name)")
        if other := prints.get(index.fingerprint):
            raise DataError(f"{other.root} and {index.root} hold the same images with the same labels (fingerprint "
                            f"{index.fingerprint[:12]}); leave one of them out")
        names[index.name] = prints[index.fingerprint] = index


def _card(members: Iterable[Member]) -> str:
    tree = {"format": FORMAT, "members": [vars(member) for member in members]}
    return format_yaml(tree)


def _read(path: Path | Url) -> tuple[Member, ...]:
    """The members that a card names, each entry looked at."""
    try:
        card = parse_yaml((path.read(MOST) if isinstance(path, Url) else read_bytes(path, MOST)).decode())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); {AGAIN}") from error
    if not isinstance(card, dict) or "format" not in card:
        raise DataError(f"{path} is not the card of a merged set: it has no 'format'; {AGAIN}")
    if card["format"] != FORMAT:
        raise DataError(f"{path} has format {str(card['format'])[:20]}, this version of embae reads format {FORMAT}; "
                        f"{AGAIN}")
    listed = card.get("members")
    if not isinstance(listed, list) or len(listed) < 2:
        raise DataError(f"{path}: members: wanted a list of two datasets at least; {AGAIN}")
    wrong = [f"members[{number}].{key}: wanted {wanted}" for number, entry in enumerate(listed)
             for key, wanted in _lacking(entry)]
    if wrong:
        raise DataError(f"{path}: {some(wrong)}; {AGAIN}")
    members = tuple(Member(**entry) for entry in listed)
    names = [member.name for member in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: two members have the name {twice}; {AGAIN}")
    if len({member.weight is None for member in members}) > 1:
        raise DataError(f"{path}: some members have a weight and some have none; {AGAIN}")
    return members


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 1e-6 <= value <= 1e6  # no sum or ratio of which overflows


_COUNT = "a whole number from 0"
_WEIGHT = "a number from 0.000001 to 1,000,000"
_KEYS = {
    "name": ("up to 100 letters, digits, _ and -", lambda value: isinstance(value, str) and NAME.fullmatch(value)),
    "path": ("the path of a dataset from here", lambda value: isinstance(value, str) and 0 < len(value) < 4096),
    "fingerprint": ("text", lambda value: isinstance(value, str)),
    **{key: (_COUNT, lambda value: type(value) is int and value >= 0) for key in ("images", "identities", "cameras")},
    "weight": (f"{_WEIGHT}, or null", lambda value: value is None or _is_weight(value)),
}


def _lacking(entry: Any) -> list[tuple[str, str]]:
    """(key, what was wanted) of all that an entry has wrong."""
    if not isinstance(entry, dict):
        return [(key, wanted) for key, (wanted, _) in _KEYS.items()]
    wrong = [(key, wanted) for key, (wanted, fits) in _KEYS.items() if key not in entry or not fits(entry[key])]
    return wrong + [(str(key)[:40], "no such key") for key in entry if key not in _KEYS]


def _member(folder: Path | Url, member: Member) -> Index:
    """A member's index, if it is what it was."""
    place = (folder.beside(member.path) if isinstance(folder, Url) else
             Path(os.path.normpath(os.path.join(os.path.realpath(folder), member.path))))
    card = folder / MERGED
    try:
        index = Index.open(place)
    except DataError as error:
        raise DataError(f"{card}: {member.name}: {error}; if the dataset was moved, {AGAIN}") from error
    if index.fingerprint != member.fingerprint or index.name != member.name:
        raise DataError(f"{card}: {member.name}: {place / CARD} has changed since (it is {index.name}, fingerprint "
                        f"{index.fingerprint[:12]}; was {member.fingerprint[:12]}); {AGAIN}")
    return index
