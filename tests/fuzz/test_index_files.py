"""Index and card, damaged and made up: opened, checked as before a run, described, read and planned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.damaged_dataset import copied, kept, with_column
from helpers.fuzzing import ODD, bent, damaged, edits, inputs, replaced, tree_edits, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.index.table import TABLE
from embae.datasets.inspection.describe import describe
from embae.datasets.inspection.verification import check_rows, verify
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return copied(tmp_path_factory.mktemp("index"))


def use(folder: Path) -> None:
    """All that looks at an index."""
    index = Index.open(folder)
    with ShardReader(index) as reader, works_or_refuses(index.root, only=(DataError,)):
        for row in range(len(index)):
            reader.read(row)  # whatever stands there, it must do no harm
    describe(index)
    check_rows(index)
    view = View([index], "train")
    view.cameras()
    PKSampler(view, PKOptions(P=2, K=2), seed=0, stage="s").plan(3)
    ShuffledSampler(view, batch=4, seed=0, stage="s").plan(3)


def told_by_verify(folder: Path) -> None:
    """What is damaged is found when everything is looked at."""
    index = Index.open(folder)
    if problems := verify(index):
        raise DataError("; ".join(problems))


@inputs(80)
@given(changes=edits, at_end=st.booleans())
def test_damaged_tables(index: Index, changes: list[tuple[str, int, int]], at_end: bool) -> None:
    path = index.root / TABLE
    data = path.read_bytes()
    footer = range(len(data) - 2500, len(data)) if at_end else None  # Arrow's own description of the file
    changed = damaged(data, changes, footer)
    with kept(path), works_or_refuses(index.root) as refusals:
        path.unlink()
        path.write_bytes(changed)
        use(index.root)
        assert not refusals


@inputs(60)
@given(changes=edits)
def test_damaged_cards(index: Index, changes: list[tuple[str, int, int]]) -> None:
    path = index.root / CARD
    with kept(path), works_or_refuses(path, index.root / TABLE):
        path.write_bytes(damaged(path.read_bytes(), changes))
        use(index.root)


@inputs(60)
@given(changes=tree_edits)
def test_bent_cards(index: Index, changes: list[tuple[str, int, int]]) -> None:
    path = index.root / CARD
    card = bent(yaml.safe_load(path.read_text()), changes)
    with kept(path), works_or_refuses(path, index.root / TABLE):
        path.write_text(yaml.safe_dump(card))
        use(index.root)


CODES = ("split", "role", "shard")
COLUMNS = (*CODES, "pid", "camid", "offset", "size", "crc32", "height", "width")
VALUES = [0, 1, 2, 3, -1, 7, 127, -128, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 512, 10**6]


@inputs(80)
@given(name=st.sampled_from(COLUMNS), row=st.integers(0, 1000), value=st.sampled_from(VALUES), whole=st.booleans())
def test_rows_that_point_elsewhere(index: Index, name: str, row: int, value: int, whole: bool) -> None:
    values = np.array(getattr(index, name))
    before = values.copy()
    info = np.iinfo(values.dtype)
    values[slice(None) if whole else row % len(values)] = (value - info.min) % (info.max - info.min + 1) + info.min
    with kept(index.root / TABLE):
        with_column(index.root, name, values)
        with works_or_refuses(index.root):
            use(index.root)
        with works_or_refuses(index.root) as refusals:
            told_by_verify(index.root)
        differs = values != before
        assert bool(refusals) == bool((differs & index.labelled if name == "pid" else differs).any())


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", [CARD, TABLE, "train-000000.tar"])
def test_what_is_no_file(index: Index, name: str, odd: Any) -> None:
    with replaced(index.root / name, odd), works_or_refuses(index.root) as refusals:
        told_by_verify(index.root)
    assert refusals
