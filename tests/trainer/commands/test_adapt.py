"""``embae adapt``: from an export and a folder of images to an adapted run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers import tiny_run
from helpers.exported_model import export
from helpers.noise_datasets import SIZE, Drawn
from typer.testing import CliRunner

from embae.datasets.errors import DataError
from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.commands.app import app
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import load_recipe
from embae.trainer.runs.same_recipe import check_same_recipe

SHORT = ["rounds=1", "stages.adapt.data.P=2", "stages.adapt.data.K=2", "stages.adapt.steps=2", "data.threads=1",
         "stages.group.cluster.linkage.distance=0.5", "stages.adapt.data.augment.pad=2"]  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and footage of two cameras."""
    folder = tmp_path_factory.mktemp("adapt")
    export(folder / "model", ImageSpec(*SIZE))
    for number in range(48):
        camera = folder / "footage" / ("door" if number % 2 else "hall")
        camera.mkdir(parents=True, exist_ok=True)
        (camera / f"{number}.jpg").write_bytes(Drawn(number // 6 * 1000 + number % 3, number % 2).read())
    return folder


@pytest.mark.slow
def test_adapts_to_a_folder_of_images(desk: Path) -> None:
    done = _embae(desk)
    assert done.returncode == 0, done.stderr
    run = desk / "runs" / "adapt-footage"
    assert "door" in done.stderr and "runs/adapt-footage" in done.stdout
    written = yaml.safe_load((run / "adapt.yaml").read_text())
    assert written["extends"] == "adapt-source-free" and written["defaults"] == {"precision": "fp32"}
    assert load_recipe(str(run / "adapt.yaml")).data.image == SIZE
    card = json.loads((run / "recalibrate-1" / "export" / "model.json").read_text())
    assert card["cameras"] == [["footage", 0], ["footage", 1]] and card["names"] == ["door", "hall"]
    again = _embae(desk)
    assert again.returncode == 0 and "[adapt-1] done before, 2 steps" in again.stdout


def test_other_words_are_reported_what_goes_on(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `test_adapts_to_a_folder_of_images`: without its overrides, and with a folder that has changed."""
    monkeypatch.chdir(desk)
    run = Path("runs/adapt-footage")
    words = "adapt", "model", "--target", "footage", "--nproc", "1"
    with pytest.raises(RecipeError) as refused:
        CliRunner().invoke(app, words, catch_exceptions=False)
    said = str(refused.value).splitlines()
    assert len(said) < 13 and f"To resume the run in the folder: embae train {run}/recipe.yaml --out {run}" in said
    assert not [line for line in said if "adapt-2." in line]  # `run` says that there are more rounds
    check_same_recipe(run, load_recipe(str(run / "recipe.yaml")))
    (desk / "footage" / "door" / "new.jpg").write_bytes(Drawn(1, 1).read())
    try:
        with pytest.raises(RecipeError, match=r"it began with other images\).*embae train .*recipe.yaml --out runs"):
            CliRunner().invoke(app, words, catch_exceptions=False)
    finally:
        (desk / "footage" / "door" / "new.jpg").unlink()


def test_few_images_are_reported(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for folder in ("one", "two"):
        (desk / folder / "door").mkdir(parents=True)
        for number in range(1 if folder == "one" else 2):
            (desk / folder / "door" / f"{number}.jpg").write_bytes(Drawn(number, 0).read())
    with pytest.raises(DataError, match=r"one: has a single image to adapt to; expected some hundreds of each camera"):
        CliRunner().invoke(app, ["adapt", "model", "--target", "one", "--out", "few"], catch_exceptions=False)
    done = CliRunner().invoke(app, ["adapt", "model", "--target", "two", "--out", "few", "no.such=1"])
    assert done.exception and "two: few images of door (2); with fewer than 32 a camera gains little" in done.stderr


def _embae(desk: Path):  # type: ignore[no-untyped-def]
    return tiny_run.program(
        "-c",
        "from embae.trainer.commands.app import main; main()",
        "adapt",
        "model",
        "--target",
        "footage",
        "--nproc",
        "1",
        *SHORT,
        cwd=desk,
    )


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere", "--target", "footage"], "neither a run folder"),
    (["model", "--target", "nothing"], "nothing: no such folder"),
    (["model", "--target", "footage", "--pattern", "("], "not a regular expression"),
    (["model", "--target", "footage", "--stage", "embedding"], "name its run"),
    (["model", "--target", "footage", "--name", "a.b"], "a.b"),
])  # fmt: skip
def test_what_is_refused(desk: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(desk)
    done = CliRunner().invoke(app, ["adapt", *words, "--out", "refused"])
    assert done.exception is not None and said in str(done.exception)
    assert not (desk / "refused").exists() or not list((desk / "refused").rglob("*.tar"))


def test_another_recipe_in_the_folder_is_not_overwritten(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    (desk / "mine").mkdir()
    (desk / "mine" / "adapt.yaml").write_text("name: mine\n")
    done = CliRunner().invoke(app, ["adapt", "model", "--target", "footage", "--out", "mine"])
    assert "already exists and differs" in str(done.exception)
    assert (desk / "mine" / "adapt.yaml").read_text() == "name: mine\n"
