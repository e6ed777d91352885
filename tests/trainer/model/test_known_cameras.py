"""Which of a model's cameras an image is of, and what a model remembers of cameras that it meets."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.toy_models import Seen, model, parts_in

from embae.trainer.inference.embeddings import note_unknown_cameras
from embae.trainer.model.known_cameras import KnownCameras, describe_cameras, list_cameras

DOOR, HALL = ("station", 0), ("station", 1)
NAMED = KnownCameras([DOOR, HALL, ("park", 3)], {DOOR: "door", HALL: "hall"})


class Rows(Seen):
    """A view with an image of each camera, in their order."""

    names = ("park", "station")

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.names.index(dataset) for dataset, _ in self.cameras()])[rows], rows

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        return np.array([camid for _, camid in self.cameras()])[rows]


def test_a_camera_is_that_of_its_name_whatever_its_number() -> None:
    assert [NAMED.index_of(("station", camid), name) for camid, name in enumerate(("new", "door", "hall"))] == [
        -1,
        0,
        1,
    ]
    assert NAMED.index_of(("other", 0), "door") == -1  # another dataset's


def test_without_names_on_both_sides_numbers_tell() -> None:
    assert [NAMED.index_of(("station", camid)) for camid in (0, 1, 2)] == [0, 1, -1]
    assert NAMED.index_of(("park", 3), "gate") == 2 and NAMED.index_of(("park", 0), "gate") == -1
    before = KnownCameras([DOOR, HALL])  # as exports were that knew no names
    assert [before.index_of(("station", camid), name) for camid, name in enumerate(("new", "door", "hall"))] == [
        0,
        1,
        -1,
    ]


def test_rows_of_a_view_are_reported_in_its_own_numbers() -> None:
    names = {("station", 0): "a new one", ("station", 1): "door", ("station", 2): "hall"}
    view = Rows([("park", 2), ("park", 3), *names], names)
    assert NAMED.indices(view, np.array([4, 1, 0, 2, 3, 3])).tolist() == [1, 2, -1, -1, 0, 0]  # type: ignore[arg-type]
    assert NAMED.unknown(view) == [("park", 2), ("station", 0)]  # type: ignore[arg-type]
    assert NAMED.indices(view, np.empty(0, int)).tolist() == []  # type: ignore[arg-type]


def test_new_cameras_get_numbers_that_none_has() -> None:
    names = {("station", 0): "attic", ("station", 1): "door", ("station", 2): "hall", ("station", 3): "yard"}
    view = Seen([("park", 3), ("park", 4), *names], names)
    joined = NAMED.extended_by(view)  # type: ignore[arg-type]
    assert joined.cameras == [DOOR, HALL, ("park", 3), ("park", 4), ("station", 4), ("station", 3)]
    assert joined.names == {DOOR: "door", HALL: "hall", ("station", 4): "attic", ("station", 3): "yard"}
    assert not joined.unknown(view)  # type: ignore[arg-type]
    again = joined.extended_by(view)  # type: ignore[arg-type]
    assert (again.cameras, again.names) == (joined.cameras, joined.names)


def test_a_camera_without_a_name_learns_it() -> None:
    view = Seen([DOOR, HALL], {DOOR: "door", HALL: "hall"})
    joined = KnownCameras([HALL, DOOR]).extended_by(view)  # type: ignore[arg-type]
    assert joined.cameras == [HALL, DOOR] and joined.names == view.camera_names


def test_cameras_that_are_strange_or_found_by_number_alone_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    view = Seen([("station", 0), ("station", 1), ("station", 2)],
                {("station", 0): "attic", ("station", 1): "door", ("station", 2): "2"})  # fmt: skip

    def told(known: KnownCameras) -> str:
        made = model(parts_in("frozen"))
        made.known_cameras = known
        note_unknown_cameras(made, [view])  # type: ignore[list-item]
        return capsys.readouterr().err

    said = told(KnownCameras([DOOR, HALL]))
    assert "takes attic, door of station for its cameras 0, 1 of station; if they had other numbers" in said
    assert "station: the model is not calibrated on 1 of its cameras (2); their" in said and "--name" not in said
    said = told(NAMED)
    assert "(attic, 2)" in said and "by number" not in said
    said = told(KnownCameras([("site", 0)], {("site", 0): "door"}))
    assert "(attic, door, 2)" in said and "It knows door of site; if these are the same cameras, give" in said
    assert not told(KnownCameras()) and not told(KnownCameras(view.cameras(), view.camera_names))


def test_a_person_says_name_or_number() -> None:
    known = KnownCameras([DOOR, HALL, ("station", 7)], {DOOR: "1", HALL: "hall"})
    said: list[str | int] = ["hall", "1", "7", "0", 1, 7, "gate", "9" * 40, "²"]
    assert [known.by_label("station", one) for one in said] == [1, 0, 2, 0, 1, 2, -1, -1, -1]
    assert known.by_label("park", "hall") == -1


def test_cameras_are_reported_by_name() -> None:
    assert describe_cameras(NAMED.cameras, NAMED.names) == "door, hall of station; 3 of park"
    assert list_cameras([("a", number) for number in range(7)], {}) == "0, 1, 2, 3, 4, …"
