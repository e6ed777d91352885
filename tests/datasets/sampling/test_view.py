"""One row number for the images of several datasets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.view import View

Tabled = Callable[..., Index]


@pytest.fixture
def view(tabled: Tabled) -> View:
    """Rows 0-4 of a: pid 3, 3, 5, none, none; rows 5-8 of bb: pid 3, 3, 9 (a distractor), 9."""
    return View([tabled("a", [(3, 0), (3, 1), (5, 0), (None, 2), (None, 0)]),
                 tabled("bb", [(3, 0), (3, 7), (9, 1, "distractor"), (9, 2)])], "train")


def test_rows_count_through_the_datasets(view: View) -> None:
    assert (len(view), view.names) == (9, ["a", "bb"])
    dataset, row = view.locate(np.array([8, 0, 4, 5]))
    assert dataset.tolist() == [1, 0, 0, 1]
    assert row.tolist() == [3, 0, 4, 0]


def test_columns(view: View) -> None:
    rows = np.array([6, 2, 1, 8])
    assert view.column("camid", rows).tolist() == [7, 0, 1, 2]
    assert view.column("pid", rows).tolist() == [3, 5, 3, 9]
    assert view.column("labelled", np.array([3, 5])).tolist() == [0, 1]
    assert view.column("pid", np.array([], np.int64)).tolist() == []


def test_cameras_are_those_of_a_dataset(view: View) -> None:
    assert view.cameras() == [("a", 0), ("a", 1), ("a", 2), ("bb", 0), ("bb", 1), ("bb", 2), ("bb", 7)]


def test_identities_are_those_of_a_dataset(view: View) -> None:
    assert [table.tolist() for table in view.identities] == [[[0, 2, 2], [2, 3, 1]], [[5, 7, 2], [7, 9, 1]]]
    assert view.identity(np.array([8, 0, 6, 1, 2])).tolist() == [3, 0, 2, 0, 1]


def test_identity_without_a_person_is_none(tabled: Tabled) -> None:
    view = View([tabled("a", [(0, 0, "distractor"), (0, 1, "distractor"), (4, 0), (4, 1, "junk")])], "train")
    assert view.identities[0].tolist() == [[2, 4, 1]]


def test_unlabelled_dataset_has_no_identity(tabled: Tabled) -> None:
    assert View([tabled("a", [(None, 0), (None, 1)])], "train").identities[0].shape == (0, 3)


def test_size_is_known_if_it_is_one(tabled: Tabled, originals: Index, stored: Index) -> None:
    small = tabled("a", [(1, 0)])
    assert View([stored], "train").image == (72, 36)
    assert View([originals], "train").image is None
    assert View([stored, small], "train").image is None


def test_no_images_in_a_split(tabled: Tabled) -> None:
    with pytest.raises(DataError, match=r"other: no images in query or gallery"):
        View([tabled("other", [(1, 0)])], "query", "gallery")


def test_fingerprints_depend_on_content_and_camera_only(originals: Index) -> None:
    view = View([originals], "train")
    found = view.fingerprints()
    keys = originals.keys.to_pylist()
    assert found[keys.index("i30")] == found[keys.index("i31")]  # the same file by the same camera
    assert len(np.unique(found)) == 31  # and i29 is the same file by another camera
