"""A merged set: one name for several sharded datasets, which stay where they are.

    <root>/<merged>/merged.yaml     its members: name, folder relative to this one, fingerprint, counts, weight
    <root>/<merged>/duplicates.csv  images that two of them have in common, if the merge looked for them

Nothing is copied. Identities and cameras of different datasets stay apart, as in every `View` of several datasets. A
merged set adds the name and the weights, and refuses a member that has changed since.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.files.plain_tree import MOST
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, MERGED
from embae.datasets.index.merged_card import REMEDY, Member, read_members
from embae.datasets.remote.url import Missing, Url

DUPLICATES = "duplicates.csv"


@dataclass(frozen=True)
class Merged:
    """An open merged set.

    Attributes:
        name: The folder's name.
        root: The folder.
        members: From its card.
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
            DataError: The card or a member is missing or damaged, or a member has changed since the merge.
        """
        folder = folder if isinstance(folder, Url) else Path(folder).absolute()
        members = read_members(folder / MERGED)
        indexes = tuple(_open_member(folder, member) for member in members)
        return cls(str(folder).rpartition("/")[2], folder, members, indexes)

    def weights(self, images: Mapping[str, int]) -> dict[str, float]:
        """Weights of the members for `PKSampler`: together they have the share that their images give them.

        Args:
            images: Labelled images by dataset name; it may have other datasets too.
        """
        weights = {member.name: member.weight or images[member.name] for member in self.members}
        scale = sum(images[name] for name in weights) / sum(weights.values())
        return {name: weight * scale for name, weight in weights.items()}

    @property
    def weighted(self) -> bool:
        """Whether the members have weights."""
        return any(member.weight is not None for member in self.members)


def is_merged(folder: Path | Url) -> bool:
    """Whether a folder is that of a merged set.

    Raises:
        DataError: A url cannot be read.
    """
    if not isinstance(folder, Url):
        return os.path.isfile(folder / MERGED)  # not Path.is_file, which raises for a name that is too long
    for name in (CARD, MERGED):  # in this order: some stores require more rights to request a file that does not exist
        try:
            (folder / name).read(MOST)
        except Missing:
            continue
        return name == MERGED
    return False


def check_distinct(indexes: Sequence[Index]) -> None:
    """Checks that datasets have different names, and that none of them is listed twice.

    Raises:
        DataError: Two datasets have the same name or the same images; the message names them.
    """
    names: dict[str, Index] = {}
    fingerprints: dict[str, Index] = {}
    for index in indexes:
        if other := names.get(index.name):
            if os.path.realpath(str(other.root)) == os.path.realpath(str(index.root)):
                raise DataError(f"the dataset {index.name} ({index.root}) is listed twice; name it once, directly or "
                                "in one merged set")
            raise DataError(f"two datasets have the name {index.name} ({other.root}, {index.root}), but names tell "
                            "identities and cameras apart; shard one of them under another name (embae shard --name)")
        if other := fingerprints.get(index.fingerprint):
            raise DataError(f"{other.root} and {index.root} contain the same images with the same labels (fingerprint "
                            f"{index.fingerprint[:12]}); leave one of them out")
        names[index.name] = fingerprints[index.fingerprint] = index


def _open_member(folder: Path | Url, member: Member) -> Index:
    """Opens the index of a member and checks that it has not changed."""
    root = (folder.resolve(member.path) if isinstance(folder, Url) else
             Path(os.path.normpath(os.path.join(os.path.realpath(folder), member.path))))
    card = folder / MERGED
    try:
        index = Index.open(root)
    except DataError as error:
        raise DataError(f"{card}: {member.name}: {error}; if the dataset was moved, {REMEDY}") from error
    if index.fingerprint != member.fingerprint or index.name != member.name:
        raise DataError(f"{card}: {member.name}: {root / CARD} has changed since (it is {index.name}, fingerprint "
                        f"{index.fingerprint[:12]}; was {member.fingerprint[:12]}); {REMEDY}")
    return index
