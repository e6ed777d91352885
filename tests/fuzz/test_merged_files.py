"""The card of a merged set, damaged and made up: opened, shown and planned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.damaged_dataset import copied, kept
from helpers.fuzzing import ODD, bent, damaged, edits, inputs, replaced, tree_edits, works_or_refuses
from hypothesis import given

from embae.datasets.errors import DataError
from embae.datasets.index.card import MERGED
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.inspection.describe import describe_merged, format_merged
from embae.datasets.merging.merge import merge
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("merged")
    members = [copied(root, name).root for name in ("park", "square")]
    return merge(members, root / "set", {"park": 1.5, "square": 2}, duplicates=False)[0].root / MERGED


def use(folder: Path) -> None:
    """All that looks at a merged set."""
    assert is_merged(folder) or not (folder / MERGED).is_file()
    merged = Merged.open(folder)
    format_merged(describe_merged(merged))
    weights = merged.weights({index.name: len(index) for index in merged.indexes})
    assert all(weight > 0 for weight in weights.values())
    ShuffledSampler(View(merged.indexes, "train"), batch=4, seed=0, stage="s").plan(3)


@inputs(150)
@given(changes=edits)
def test_damaged_cards(card: Path, changes: list[tuple[str, int, int]]) -> None:
    with kept(card), works_or_refuses(MERGED, only=(DataError,)):
        card.write_bytes(damaged(card.read_bytes(), changes))
        use(card.parent)


@inputs(200)
@given(changes=tree_edits)
def test_bent_cards(card: Path, changes: Any) -> None:
    tree = bent(yaml.safe_load(card.read_text()), changes)
    with kept(card), works_or_refuses(MERGED, only=(DataError,)):
        card.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="replace")
        use(card.parent)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_other_things_in_its_place(card: Path, odd: Any) -> None:
    with replaced(card, odd), works_or_refuses(MERGED, only=(DataError,)):
        use(card.parent)
