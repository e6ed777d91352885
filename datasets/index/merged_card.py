"""``merged.yaml``, the card of a merged set: one entry per member."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embae.datasets.errors import DataError
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.datasets.files.yaml_files import format_yaml, parse_yaml
from embae.datasets.index.card import NAME, list_some
from embae.datasets.remote.url import Url

FORMAT = 1
REMEDY = "merge the datasets again (embae merge)"
WEIGHT_RANGE = "a number from 0.000001 to 1,000,000"


@dataclass(frozen=True)
class Member:
    """One dataset of a merged set, as it was when they were merged.

    Attributes:
        name: The dataset's name, unique among the members.
        path: The dataset's folder, relative to that of the merged set.
        fingerprint: Of the dataset's index.
        images: Over all splits, as are `identities` and `cameras`.
        identities: Of role person.
        cameras: Physical cameras.
        weight: Share of the merged set's labelled batches, in any unit; None where shares are in proportion to images.
    """

    name: str
    path: str
    fingerprint: str
    images: int
    identities: int
    cameras: int
    weight: float | None


def is_weight(value: Any) -> bool:
    """Whether a value is a valid weight: in `WEIGHT_RANGE`, so that no sum or ratio overflows."""
    return type(value) in (int, float) and 1e-6 <= value <= 1e6


def format_card(members: Iterable[Member]) -> str:
    """The card as YAML text."""
    tree = {"format": FORMAT, "members": [vars(member) for member in members]}
    return format_yaml(tree)


def read_members(path: Path | Url) -> tuple[Member, ...]:
    """Reads and checks the members in a card.

    Raises:
        DataError: The card is missing, unreadable, of another format, or has an invalid entry.
    """
    try:
        card = parse_yaml((path.read(MOST) if isinstance(path, Url) else read_bytes(path, MOST)).decode())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); {REMEDY}") from error
    if not isinstance(card, dict) or "format" not in card:
        raise DataError(f"{path} is not the card of a merged set: it has no 'format'; {REMEDY}")
    if card["format"] != FORMAT:
        raise DataError(f"{path} has format {str(card['format'])[:20]}, this version of embae reads format {FORMAT}; "
                        f"{REMEDY}")
    entries = card.get("members")
    if not isinstance(entries, list) or len(entries) < 2:
        raise DataError(f"{path}: members: expected a list of at least two datasets; {REMEDY}")
    problems = [f"members[{number}].{problem}" for number, entry in enumerate(entries) for problem in _problems(entry)]
    if problems:
        raise DataError(f"{path}: {list_some(problems)}; {REMEDY}")
    members = tuple(Member(**entry) for entry in entries)
    names = [member.name for member in members]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: two members have the name {repeated}; {REMEDY}")
    if len({member.weight is None for member in members}) > 1:
        raise DataError(f"{path}: some members have a weight and some have none; {REMEDY}")
    return members


_COUNT = "an integer from 0"
_KEYS = {
    "name": ("up to 100 letters, digits, _ and -", lambda value: isinstance(value, str) and NAME.fullmatch(value)),
    "path": ("the path of a dataset from here", lambda value: isinstance(value, str) and 0 < len(value) < 4096),
    "fingerprint": ("text", lambda value: isinstance(value, str)),
    **{key: (_COUNT, lambda value: type(value) is int and value >= 0) for key in ("images", "identities", "cameras")},
    "weight": (f"{WEIGHT_RANGE}, or null", lambda value: value is None or is_weight(value)),
}


def _problems(entry: Any) -> list[str]:
    """``key: sentence`` for each key of an entry that is invalid, missing or unknown."""
    values = entry if isinstance(entry, dict) else {}
    invalid = [f"{key}: expected {expected}" for key, (expected, fits) in _KEYS.items()
               if key not in values or not fits(values[key])]
    return invalid + [f"{str(key)[:40]}: unknown key" for key in values if key not in _KEYS]
