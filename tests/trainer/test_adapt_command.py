"""``embae adapt``: from an export and a folder of images to an adapted run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import yaml
from exported import export
from small import SIZE, Drawn
from typer.testing import CliRunner

from embae.datasets.augment import ImageSpec
from embae.trainer.cli import app
from embae.trainer.recipe import load

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


def test_adapts_to_a_folder_of_images(desk: Path) -> None:
    done = _embae(desk)
    assert done.returncode == 0, done.stderr
    run = desk / "runs" / "adapt-footage"
    assert "door" in done.stderr and "runs/adapt-footage" in done.stdout
    written = yaml.safe_load((run / "adapt.yaml").read_text())
    assert written["extends"] == "adapt-source-free" and written["defaults"] == {"precision": "fp32"}
    assert load(str(run / "adapt.yaml")).data.image == SIZE
    card = json.loads((run / "recalibrate-1" / "export" / "model.json").read_text())
    assert card["cameras"] == [["footage", 0], ["footage", 1]] and card["names"] == ["door", "hall"]
    again = _embae(desk)
    assert again.returncode == 0 and "[adapt-1] done before, 2 steps" in again.stdout


def _embae(desk: Path):  # type: ignore[no-untyped-def]
    return tiny.program("-c", "from embae.trainer.cli import main; main()", "adapt", "model", "--target", "footage",
                        "--nproc", "1", *SHORT, cwd=desk)


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
    assert "says something else" in str(done.exception)
    assert (desk / "mine" / "adapt.yaml").read_text() == "name: mine\n"
