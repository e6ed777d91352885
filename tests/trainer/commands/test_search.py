"""``embae extract`` and ``embae search`` as a user types them, on drawn people and a model that is not trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.feather
import pytest
import torch
from helpers import tiny_run
from helpers.exported_model import STORED, export
from PIL import Image
from typer.testing import CliRunner

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.sampling.view import View
from embae.trainer.commands.app import app
from embae.trainer.deployment import extract as extracting
from embae.trainer.deployment.search_picture import Shown, draw, size
from embae.trainer.deployment.vectors import Vectors
from embae.trainer.errors import RecipeError
from embae.trainer.evaluation.evaluate import evaluate
from embae.trainer.inference.options import Inference
from embae.trainer.model.saved import SavedModel
from embae.trainer.runtime.distributed import World

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in ``stage``, ``shards``, and two images of the gallery in ``door`` and ``hall``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    export(Path("stage"), STORED)
    Path("shards").symlink_to(tiny_run.shards())
    for place, data in zip(("door", "hall"), ViewReader(gallery()).read(np.array([3, 11])), strict=True):
        Path("footage", place).mkdir(parents=True)
        Path("footage", place, "seen.jpg").write_bytes(data)
    return tmp_path


def park() -> Index:
    return Index.open(Path("shards/park"))


def gallery() -> View:
    return View([park()], "gallery")


def key(number: int) -> str:
    """Of an image of the gallery."""
    return park().key(park().rows("gallery").start + number)


def run(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def search(*words: object) -> Any:
    run("search", "stage", *words, "--json", "new/found.json")
    return json.loads(Path("new/found.json").read_text())


def test_extracted_are_the_embeddings_of_evaluate(desk: Path) -> None:
    said = run("extract", "stage", "shards/park", "-o", "out/park.arrow")
    assert said == f"out/park.arrow: {len(park())} embeddings of 8 numbers\n"
    opened = SavedModel.open(Path("stage/export"))
    inference = Inference(opened.spec, ALONE, Path("cache"), tta="flip")
    evaluate(opened.restore(), park(), inference, keep=Path("kept.npz"))
    found = Vectors.open(Path("out/park.arrow"))
    with np.load("kept.npz") as kept:
        for split in ("query", "gallery"):
            rows = park().rows(split)  # type: ignore[arg-type]
            assert np.array_equal(found[np.arange(rows.start, rows.stop)], kept[split])
    table = pyarrow.feather.read_table("out/park.arrow", memory_map=True)  # by anyone's reader
    assert table["key"].to_pylist() == park().keys.to_pylist() and set(table["dataset"].to_pylist()) == {"park"}
    assert table["role"].to_pylist().count("distractor") == np.sum(park().role == 1) > 0
    assert sorted(os.listdir("out")) == ["park.arrow"] and not Path("stage/cache").exists()


def test_extraction_is_not_done_twice_and_goes_on_after_a_kill(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("extract", "stage", "shards/park", "-o", "whole.arrow")
    calls: list[str] = []
    real = extracting.embedded

    def counted(model: Any, view: View, *rest: Any) -> Any:
        calls.append("")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, view, *rest)

    monkeypatch.setattr(extracting, "embedded", counted)
    run("extract", "stage", "shards/park", "-o", "whole.arrow")
    assert not calls
    run_killed = CliRunner().invoke(app, ["extract", "stage", "shards/park", "-o", "again.arrow"])
    assert run_killed.exit_code and not Path("again.arrow").exists() and len(calls) == 3
    run("extract", "stage", "shards/park", "-o", "again.arrow")
    assert Path("again.arrow").read_bytes() == Path("whole.arrow").read_bytes()
    run("extract", "stage", "shards/park", "-o", "again.arrow", "--tta", "none")  # another question
    assert Path("again.arrow").read_bytes() != Path("whole.arrow").read_bytes()


@pytest.mark.ranks
def test_two_ranks_extract_the_same_from_a_folder_as_one(desk: Path) -> None:
    run("extract", "stage", "footage", "-o", "one.arrow")
    done = tiny_run.embae("extract", "stage", "footage", "-o", "two.arrow", "--nproc", 2, cwd=desk)
    assert done.returncode == 0, done.stderr
    assert Path("two.arrow").read_bytes() == Path("one.arrow").read_bytes()
    run("extract", "stage", "shards/park", "-o", "park.arrow")
    found, all_of_them = Vectors.open(Path("one.arrow")), Vectors.open(Path("park.arrow"))
    assert found.camid.tolist() == [0, 1] and not found.labelled.any()
    start = park().rows("gallery").start
    np.testing.assert_allclose(found[np.arange(2)], all_of_them[start + np.array([3, 11])], rtol=1e-4, atol=1e-5)


def test_search_finds_the_same_image_first(desk: Path) -> None:
    found = search("--query", "footage/door/seen.jpg", "--query", "footage/hall/seen.jpg", "--gallery", "shards/park",
                   "--top", 4)
    images = int(np.sum(park().role[park().rows("gallery")] != 2))
    assert {name: value for name, value in found.items() if name != "queries"} == {
        "format": 1, "model": "stage/export", "gallery": "park", "images": images, "tta": "flip", "rerank": False,
        "expand": 0}
    for query, number in zip(found["queries"], (3, 11), strict=True):
        assert [query[name] for name in ("dataset", "camid", "pid")] == [None] * 3
        assert [match["rank"] for match in query["matches"]] == [1, 2, 3, 4]
        first, row = query["matches"][0], park().rows("gallery").start + number
        assert first["key"] == key(number) and first["distance"] < 0.02 and first["same"] is None
        assert first["dataset"] == "park" and first["camid"] == int(first["camera"]) == park().camid[row]
        distances = [match["distance"] for match in query["matches"]]
        assert distances == sorted(distances) and distances[1] > 0.02


def test_a_second_search_extracts_nothing(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--query", "footage/door/seen.jpg", "--gallery"
    first = [search(*words, place) for place in ("shards/park", "footage")]
    monkeypatch.setattr(extracting, "embedded", None)
    assert [search(*words, place) for place in ("shards/park", "footage")] == first
    nearest = first[1]["queries"][0]["matches"][0]
    assert (nearest["camid"], nearest["camera"], nearest["rank"]) == (0, "door", 1) and first[1]["images"] == 2


def test_a_query_by_its_key_is_not_found_itself(desk: Path) -> None:
    run("extract", "stage", "shards/park", "-o", "all.arrow")
    row = next(row for row in range(len(park())) if park().labelled[row] and park().role[row] == 0)
    for place, splits in (("shards/park", ("gallery",)), ("all.arrow", ("train", "query", "gallery"))):
        for said in (park().key(row), key(3)):
            (query,) = search("--query", said, "--gallery", place, "--top", 1000)["queries"]
            images = [number for split in splits for number in np.arange(len(park()))[park().rows(split)]  # type: ignore[arg-type]
                      if park().role[number] != 2]
            assert {match["key"] for match in query["matches"]} == {park().key(number) for number in images} - {said}
            for match in query["matches"]:
                of = park().keys.to_pylist().index(match["key"])
                if query["pid"] is not None:
                    assert match["same"] == (park().role[of] == 0 and park().pid[of] == query["pid"])
            assert query["dataset"] == "park" and query["camid"] is not None


def test_expansion_and_re_ranking_change_the_list(desk: Path) -> None:
    words = "--query", park().key(park().rows("query").start), "--gallery", "shards/park", "--top", 12
    plain, expanded, again = (search(*words, *more) for more in ((), ("--expand", 3), ("--rerank",)))
    assert (expanded["expand"], again["rerank"]) == (3, True)
    lists = [[match["key"] for match in found["queries"][0]["matches"]] for found in (plain, expanded, again)]
    assert lists[0] != lists[1] and lists[0] != lists[2]
    assert all(0 <= match["distance"] <= 1 for match in again["queries"][0]["matches"])


def test_the_picture_shows_every_query_and_its_list(desk: Path) -> None:
    query = park().key(park().rows("query").start)
    run("search", "stage", "--query", query, "--query", "footage/door/seen.jpg", "--gallery", "shards/park", "--top", 5,
        "--picture", "new/found.png", "--camera", "park:1")
    with Image.open("new/found.png") as picture:
        assert picture.size == size(2, 5) and picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}  # type: ignore[union-attr]
    assert {(0x00, 0x7f, 0x5f), (0xd1, 0x48, 0x3f), (0xb9, 0xbd, 0xc4)} <= colours  # frames, or the legend


def test_a_calibrated_model_is_reported_the_camera(desk: Path) -> None:
    export(Path("calibrated"), STORED, cameras=2)
    words = "search", "calibrated", "--query", "footage/door/seen.jpg", "--gallery", "shards/park", "--json"
    first, other = (f"park:{number}" for number in sorted(set(park().camid.tolist()))[:2])
    found = []
    for number, camera in enumerate((first, first.removeprefix("park:"), other)):
        run(*words, f"{number}.json", "--camera", camera)
        found.append(json.loads(Path(f"{number}.json").read_text())["queries"])
    assert found[0] == found[1] != found[2] and found[0][0]["dataset"] == "park"


def test_a_calibrated_model_knows_cameras_by_name(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Camera 1 of the model is the hall, which the folder has as camera 1 of three, and as 2 once there is an attic."""
    export(Path("calibrated"), STORED, cameras=2, names=["hall", "door"])
    words = ["--query", "footage/door/seen.jpg", "--gallery", "footage", "--name", "park"]

    def found(*more: str) -> tuple[Any, str]:
        said = ["search", "calibrated", *words, *more, "--json", "found.json"]
        done = CliRunner().invoke(app, said, catch_exceptions=False)
        return json.loads(Path("found.json").read_text())["queries"][0], done.stderr + capfd.readouterr().err

    query, said = found("--camera", "door")
    assert (query["dataset"], query["camid"], query["camera"]) == ("park", 0, "door") and "not calibrated" not in said
    first = query["matches"][0]
    assert first["camera"] == "door" and first["distance"] < 0.02  # the same image, through the same statistics
    other, _ = found("--camera", "park:hall")
    assert other["matches"] != query["matches"]
    _, said = found()
    assert "its camera is not known (give --camera)" in said and "The model knows hall, door of park" in said
    Path("footage", "attic").mkdir()
    Path("footage", "attic", "seen.jpg").write_bytes(Path("footage/hall/seen.jpg").read_bytes())
    moved, said = found("--camera", "door")
    assert "park: the model is not calibrated on 1 of its cameras (attic)" in said and moved["camid"] == 1
    again = [match for match in moved["matches"] if match["camera"] != "attic"]
    assert [match["camera"] for match in again] == [match["camera"] for match in query["matches"]]
    np.testing.assert_allclose([match["distance"] for match in again],
                               [match["distance"] for match in query["matches"]], atol=1e-4)
    _, said = found("--camera", "attic")
    assert "the model is not calibrated on camera attic of park" in said
    with pytest.raises(DataError, match="--camera dor: park has attic, door, hall; the model knows hall, door of park"):
        found("--camera", "dor")


def test_a_merged_set_is_searched_and_extracted_member_by_member(desk: Path) -> None:
    run("merge", "shards/park", "shards/square", "--out", "all")
    export(Path("calibrated"), STORED, cameras=2)
    run("extract", "calibrated", "all", "-o", "all.arrow", "--tta", "none")
    found = Vectors.open(Path("all.arrow"))
    assert found.datasets == ["park", "square"] and len(found) == sum(len(one) for one in members())
    for index in members():
        run("extract", "calibrated", index.root, "-o", "one.arrow", "--tta", "none")
        one = Vectors.open(Path("one.arrow"))
        own = np.flatnonzero(found.dataset == found.datasets.index(index.name))
        assert np.array_equal(found.row[own], one.row) and [found.key(row) for row in own[:3]] == [
            one.key(row) for row in range(3)]
        np.testing.assert_allclose(found[own], one[np.arange(len(one))], rtol=1e-4, atol=1e-5)
    park_key, square = key(3), members()[1]
    square_key = square.key(square.rows("gallery").start)
    for gallery_ in ("all", "all.arrow"):
        words = ["--query", f"park:{park_key}", "--query", f"square:{square_key}", "--gallery", gallery_]
        words += ["--top", 3, "--picture", "found.png", "--json", "found.json", "--query", "footage/door/seen.jpg"]
        if gallery_.endswith("arrow"):
            run("extract", "calibrated", "all", "-o", "all.arrow")
        run("search", "calibrated", *words, "--camera", f"park:{gallery().column('camid', np.array([3]))[0]}")
        tree = json.loads(Path("found.json").read_text())
        assert tree["gallery"] == "all" and [one["dataset"] for one in tree["queries"]] == ["park", "square", "park"]
        assert all(match["dataset"] in ("park", "square") for one in tree["queries"] for match in one["matches"])
        nearest = tree["queries"][2]["matches"][0]
        assert (nearest["dataset"], nearest["key"]) == ("park", park_key) and nearest["distance"] < 0.02
        assert park_key not in [match["key"] for match in tree["queries"][0]["matches"] if match["dataset"] == "park"]
    both = set(park().keys.to_pylist()) & set(square.keys.to_pylist())
    if both:
        with pytest.raises(DataError, match="several datasets of all have this key; give park:"):
            run("search", "stage", "--query", min(both), "--gallery", "all")
    with pytest.raises(DataError, match="--name is for a folder of images"):
        run("extract", "stage", "all", "-o", "x.arrow", "--name", "y")


def members() -> list[Index]:
    return [Index.open(Path("shards") / name) for name in ("park", "square")]


def test_cameras_that_a_calibrated_model_does_not_know_are_reported(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(Path("calibrated"), STORED, cameras=2)
    said = CliRunner().invoke(app, ["extract", "calibrated", "footage", "-o", "some.arrow"], catch_exceptions=False)
    assert said.exit_code == 0
    told = said.stderr + capfd.readouterr().err
    assert "footage: the model is not calibrated on 2 of its cameras (door, hall)" in told
    assert "It knows 1, 2 of park; if these are the same cameras, give the folder that name with --name" in told


@pytest.mark.parametrize("words, said", [
    (("--query", "missing.jpg", "--gallery", "shards/park"), "no such file, and park has no image of this key"),
    (("--query", "footage", "--gallery", "shards/park"), "a folder; expected one image"),
    (("--query", "stage/export/model.json", "--gallery", "shards/park"), "not an image of a known kind"),
    (("--query", "footage/door/seen.jpg", "--gallery", "nowhere"), "nowhere: no such folder"),
    (("--query", "footage/door/seen.jpg", "--gallery", "stage/export/model.json"), "not a whole file of embeddings"),
    (("--query", "footage/door/seen.jpg", "--gallery", "shards/park", "--camera", "roof"), "--camera roof: park has"),
])
def test_bad_input_is_reported(desk: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        run("search", "stage", *words)


def test_embeddings_of_another_model_are_refused(desk: Path) -> None:
    run("extract", "stage", "shards/park", "-o", "all.arrow", "--tta", "none")
    with pytest.raises(DataError, match=r"all\.arrow: embeddings of another model or another test-time augmentation"):
        run("search", "stage", "--query", "footage/door/seen.jpg", "--gallery", "all.arrow")
    with pytest.raises(RecipeError, match=r"--out out\.npz: expected a file named \*\.arrow"):
        run("extract", "stage", "shards/park", "-o", "out.npz")
    with pytest.raises(RecipeError, match="found 2 for 1 queries"):
        run("search", "stage", "--query", "a", "--gallery", "b", "--camera", "1", "--camera", "2")


def test_places_that_are_read_only_are_reported_at_once(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != desk)  # root may write anywhere
    search = "search", "stage", "--query", "footage/door/seen.jpg", "--gallery", "footage"
    for words in ([*search, "--json", "new/found.json"], [*search, "--picture", "found.png"],
                  ["extract", "stage", "footage", "-o", "new/some.arrow"], ["adapt", "stage", "--target", "footage"],
                  ["calibrate", "stage", "--dataset", "footage", "--out", "new"]):  # fmt: skip
        with pytest.raises(RecipeError, match=r"cannot be written to; choose another with --"):
            run(*words)
    assert sorted(os.listdir()) == ["footage", "shards", "stage"]


@pytest.mark.ranks
def test_bad_input_ends_with_code_2(desk: Path) -> None:
    done = tiny_run.embae("search", "shards", "--query", "missing.jpg", "--gallery", "shards/park", cwd=desk)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr == "embae: shards: neither a run folder (recipe.yaml) nor an export (model.json)\n"


def test_frames_differ_in_more_than_their_colour(tmp_path: Path) -> None:
    """Down the left edge of the frames: one colour of the same person, broken by the paper's of someone else."""
    some = Image.new("RGB", (64, 128))
    shown = [Shown(some, "", [], same) for same in (None, True, False)]
    draw("title", "", [(shown[0], shown[1:])], tmp_path / "frames.png")
    with Image.open(tmp_path / "frames.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(picture.height, picture.width, 3)[100:]
    for colour, kinds in (((0x00, 0x7f, 0x5f), 1), ((0xd1, 0x48, 0x3f), 2)):
        found = np.argwhere((pixels == colour).all(2))
        down = pixels[found[:, 0].min():found[:, 0].max() + 1, found[:, 1].min()]
        assert len(down) > 150 and len({tuple(pixel) for pixel in down.tolist()}) == kinds
