"""Merged sets: what their card holds, what it opens, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD, MERGED
from embae.datasets.index.merged import Merged
from embae.datasets.merging import merge as module
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.view import View


def merge(folders: list[Path], out: Path, weights: dict[str, float]) -> Merged:
    """Without duplicates: the shards of these datasets are holes."""
    return module.merge(folders, out, weights, duplicates=False)[0]


ROWS = {"one": [(0, 1), (0, 2), (1, 1), (1, 1), (None, 3)], "two": [(0, 1), (0, 1), (5, 4), (5, 4)],
        "three": [(7, 1), (8, 1, "junk"), (9, 2), (9, 2)]}


@pytest.fixture
def tree(tabled: Callable[..., Index], tmp_path: Path) -> Path:
    """A folder with three datasets."""
    for name, rows in ROWS.items():
        tabled(name, rows)
    return tmp_path


def bent(card: Path, **changes: Any) -> None:
    """The card with another first member, or another format."""
    tree = yaml.safe_load(card.read_text())
    for key, value in changes.items():
        (tree if key in tree else tree["members"][0])[key] = value
    card.write_text(yaml.safe_dump(tree))


def test_the_card_says_what_is_in_it(tree: Path) -> None:
    merged = merge([tree / "two", tree / "one"], tree / "merged", {"one": 3, "two": 1.5})
    card = yaml.safe_load((tree / "merged" / MERGED).read_text())
    assert [path.name for path in (tree / "merged").iterdir()] == [MERGED]
    assert card["format"] == 1 and card["members"][1] == {
        "name": "one", "path": "../one", "fingerprint": Index.open(tree / "one").fingerprint, "images": 5,
        "identities": 2, "cameras": 3, "weight": 3}
    assert [index.name for index in merged.indexes] == ["two", "one"]
    assert Merged.open(tree / "merged").members == merged.members


def test_a_tree_is_moved_as_a_whole_and_merged_again_from_anywhere(tree: Path, tmp_path: Path) -> None:
    merge([tree / "one", tree / "two"], tree / "sets" / "merged", {})
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.move(tree, moved)
    assert [index.root for index in Merged.open(moved / "sets" / "merged").indexes] == [moved / "one", moved / "two"]
    (moved / "link").symlink_to(moved / "sets" / "merged")  # its members are found from where it really lies
    assert len(Merged.open(moved / "link").indexes) == 2
    merged = merge([moved / "three", moved / "one"], moved / "sets" / "merged", {})  # in place of the first
    assert [member.name for member in merged.members] == ["three", "one"]


def test_identities_of_one_number_stay_apart(tree: Path) -> None:
    merged = merge([tree / name for name in ROWS], tree / "merged", {})
    view = View(merged.indexes, "train")
    assert [len(table) for table in view.identities] == [2, 2, 2]
    assert set(view.cameras()) >= {("one", 1), ("two", 1), ("three", 1)}


def test_weights_share_what_the_members_have_together(tree: Path) -> None:
    """Of the batches the merged set keeps the share of its images, 8 of 11; its members have 3 and 1 parts of that."""
    merged = merge([tree / "one", tree / "two"], tree / "merged", {"one": 3, "two": 1})
    assert merged.weighted
    weights = merged.weights({"one": 4, "two": 4, "three": 3})
    assert weights == {"one": 6.0, "two": 2.0}
    view = View([*merged.indexes, Index.open(tree / "three")], "train")
    sampler = PKSampler(view, PKOptions(P=1, K=2, weights={**weights, "three": 3}), seed=0, stage="s")
    datasets = [int(view.locate(sampler.plan(step))[0][0]) for step in range(110)]
    assert np.abs(np.bincount(datasets) - [60, 20, 30]).max() <= 1
    assert not merge([tree / "one", tree / "two"], tree / "merged", {}).weighted


def test_what_cannot_be_merged_is_reported(tree: Path, tabled: Callable[..., Index]) -> None:
    def refused(message: str, *names: str, out: str = "merged", **weights: float) -> None:
        with pytest.raises(DataError, match=message):
            merge([tree / name for name in names], tree / out, weights)
        assert not (tree / "merged" / MERGED).exists()

    refused("found 1 dataset to merge; expected at least two", "one")
    refused("lake: no such dataset; datasets beside it: one, three, two", "one", "lake")
    refused(r"the dataset one \(.*\) is listed twice", "one", "two", "one")
    (tree / "alias").symlink_to(tree / "one")
    refused(r"the dataset one \(.*\) is listed twice", "one", "alias")
    shutil.copytree(tree / "one", tree / "other" / "one")
    refused("two datasets have the name one .*embae shard --name", "one", "other/one")
    shutil.copytree(tree / "one", tree / "copy")
    card = tree / "copy" / CARD
    card.write_text(card.read_text().replace("name: one", "name: copy"))
    refused("one and .*copy contain the same images with the same labels", "one", "copy")
    refused("--weight lake: is none of the datasets one, two", "one", "two", lake=1)
    refused("--weight: two has none; give every dataset a weight", "one", "two", one=1)
    refused("--weight two=0: expected a number from", "one", "two", one=1, two=0)
    refused("--weight two=nan: expected a number from", "one", "two", one=1, two=float("nan"))
    refused("exists and holds other things than a merged set", "one", "two", out="three")
    refused("expected a folder named by up to 100 letters", "one", "two", out="my.set")
    merge([tree / "one", tree / "two"], tree / "pair", {})
    refused(r"pair is a merged set itself; name its members, .* \.\./one, \.\./two", "pair", "three")


def test_a_merged_set_is_no_dataset(tree: Path) -> None:
    merge([tree / "one", tree / "two"], tree / "merged", {})
    with pytest.raises(DataError, match=r"merged is a merged set .*; expected one: name a member"):
        Index.open(tree / "merged")


def test_a_changed_member_is_refused_by_name(tree: Path, tabled: Callable[..., Index]) -> None:
    merge([tree / "one", tree / "two"], tree / "merged", {})
    shutil.rmtree(tree / "two")
    with pytest.raises(DataError, match=r"merged.yaml: two: .*no such dataset.*; if the dataset was moved, merge the"):
        Merged.open(tree / "merged")
    tabled("two", ROWS["two"][:3])
    with pytest.raises(DataError, match=r"merged.yaml: two: .* has changed since .*; merge the datasets again"):
        Merged.open(tree / "merged")
    merge([tree / "one", tree / "two"], tree / "merged", {})
    assert len(Merged.open(tree / "merged").indexes[1]) == 3


DAMAGED = {
    "has format 2, this version of embae reads format 1": {"format": 2},
    "members: expected a list of at least two datasets": {"members": []},
    r"members\[0\].name: expected up to 100 letters": {"name": "../x"},
    r"members\[0\].path: expected the path": {"path": 3},
    r"members\[0\].images: expected an integer from 0": {"images": -1},
    r"members\[0\].weight: expected a number from .*, or null": {"weight": 0},
    r"members\[0\].more: unknown key": {"more": 1},
    "some members have a weight and some have none": {"weight": 2},
    "two members have the name two": {"name": "two"},
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_card_is_refused(tree: Path, message: str) -> None:
    merge([tree / "one", tree / "two"], tree / "merged", {})
    bent(tree / "merged" / MERGED, **DAMAGED[message])
    with pytest.raises(DataError, match=message + ".*merge the datasets again"):
        Merged.open(tree / "merged")
