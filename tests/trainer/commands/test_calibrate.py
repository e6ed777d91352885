"""``embae calibrate`` as a user meets it: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise_datasets, tiny_run
from helpers.run_parts import context
from helpers.toy_models import KEYS, model, parts_in
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from embae.datasets.errors import DataError
from embae.datasets.image_source import footage
from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.commands.app import app
from embae.trainer.deployment.vectors import Vectors
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model import saved as export
from embae.trainer.model.camera_tables import TABLES
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.load import load_recipe
from embae.trainer.runtime.distributed import join, leave
from embae.trainer.training.calibrate_stage import run_calibrate_stage

COUNTS = {"door": 130, "hall": 128, "yard": 3}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the footage of three cameras, door, hall and yard, and an export."""
    folder = tmp_path_factory.mktemp("desk")
    for number, (camera, count) in enumerate(COUNTS.items()):
        (folder / "station" / camera / "monday").mkdir(parents=True)
        for image in range(count):
            path = folder / "station" / camera / "monday" / f"{image}.jpg"
            path.write_bytes(noise_datasets.Drawn(100 * number + image, number).read())
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (folder / "bad" / name).write_bytes(b"no image")
    made = model(parts_in("frozen", "frozen")).eval()
    (folder / "start" / "export").mkdir(parents=True)
    export.write(folder / "start" / "export", made, made.state_dict(), keys=KEYS, spec=ImageSpec(*noise_datasets.SIZE))
    return folder


def calibrate(desk: Path, *words: object, start: str = "start/export") -> Result:
    """The command, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        said = ["calibrate", str(desk / start), *map(str, words)]
        return CliRunner().invoke(app, said, catch_exceptions=False)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def by_dataset(desk: Path) -> Path:
    """The export after all cameras at once, without the embedding."""
    done = calibrate(desk, "--dataset", desk / "station", "--features", "--out", desk / "all")
    assert done.exit_code == 0
    assert "station/door: 130 images\nstation/hall: 128 images\nstation/yard: 3 images, which is few" in done.stdout
    return desk / "all"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_it_is_what_the_stages_of_a_recipe_write(desk: Path, by_dataset: Path) -> None:
    footage(str(desk / "station"), keep=desk / "kept")
    (root,) = (desk / "kept").iterdir()
    words = ["data.target=station", f"data.root={root}", "data.loader=dali", "run=[calibrate, features]",
             "evaluate=null", f"stages.calibrate.init={desk / 'start' / 'export'}",
             "stages.calibrate.data.batch=128"]  # fmt: skip
    recipe = load_recipe("bn-camera-features", words, [noise_datasets.settings(desk, root)])
    run, world = desk / "run", join()
    run.mkdir()
    try:
        for stage in recipe.run:
            run_calibrate_stage(context(recipe, run, world), stage)
    finally:
        leave()
    found, wanted = SavedModel.open(by_dataset), SavedModel.open(run / "features" / "export")
    assert found.cameras == wanted.cameras == [("station", 0), ("station", 1), ("station", 2)]
    assert (found.parts, found.spec) == (wanted.parts, wanted.spec) == (["backbone"], wanted.spec)
    state, recipes = weights(by_dataset), weights(run / "features" / "export")
    assert state.keys() == recipes.keys() and any(key.endswith(TABLES) for key in state)
    for key, value in recipes.items():
        assert torch.equal(value, state[key]), key


def test_a_camera_that_is_added_leaves_the_others_as_they_were(desk: Path, by_dataset: Path) -> None:
    start = by_dataset.relative_to(desk)
    before = {path: path.read_bytes() for path in by_dataset.iterdir()}
    pattern = desk / "station" / "d*" / "*" / "[0-9].jpg"
    done = calibrate(desk, "--camera", f"shop={pattern}", "--out", desk / "shop", start=str(start))
    assert "shop/0: 10 images, which is few" in done.stdout
    assert {path: path.read_bytes() for path in by_dataset.iterdir()} == before
    found = SavedModel.open(desk / "shop")
    assert found.cameras == [("shop", 0), ("station", 0), ("station", 1), ("station", 2)]
    after = weights(desk / "shop")
    for key, value in weights(by_dataset).items():
        table = key.endswith(TABLES[:4])
        assert torch.equal(value, after[key][1:] if table else after[key]), key
        if table:  # its own, of features too
            assert not torch.equal(after[key][0], value[0])
    assert found.restore().cameras == found.cameras


def embeddings(desk: Path, export: Path, images: Path, name: str) -> dict[tuple[str, str], np.ndarray]:
    """By (camera, file) of a folder."""
    out = desk / f"{name}.arrow"
    words = ["extract", str(export), str(images), "-o", str(out), "--name", "station", "--tta", "none"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    found = Vectors.open(out)
    every = found[np.arange(len(found))]
    return {(found.camera_name(("station", int(camid))), found.key(row).rpartition("_")[2]): every[row]
            for row, camid in enumerate(found.camid)}


def test_cameras_are_known_by_name_when_one_sorts_before_them(desk: Path, by_dataset: Path) -> None:
    """A new folder moves the numbers of all: their statistics stay theirs, and it has none until it is calibrated."""
    moved = desk / "moved"
    for camera in ("door", "hall", "yard"):
        (moved / camera).mkdir(parents=True)
        for path in sorted((desk / "station" / camera / "monday").iterdir())[:12]:
            (moved / camera / path.name).symlink_to(path)
    before = embeddings(desk, by_dataset, moved, "before")
    (moved / "attic").symlink_to(moved / "hall")
    after = embeddings(desk, by_dataset, moved, "after")
    assert {camera for camera, _ in after} == {"attic", "door", "hall", "yard"}
    for (camera, file), embedding in before.items():
        np.testing.assert_allclose(after[camera, file], embedding, rtol=1e-4, atol=1e-4)
    apart = [np.abs(after["attic", file] - after["hall", file]).max() for camera, file in before if camera == "hall"]
    assert min(apart) > 0.05  # the same images, of a camera that the model does not know

    done = calibrate(desk, "--dataset", moved, "--name", "station", "--out", desk / "more", start=str(by_dataset))
    assert done.exit_code == 0 and "station/attic: 12 images" in done.stdout
    found = SavedModel.open(desk / "more")
    assert found.cameras == [("station", 0), ("station", 1), ("station", 2), ("station", 4)]
    assert [found.known_cameras.names[camera] for camera in found.cameras] == ["door", "hall", "yard", "attic"]
    done = calibrate(desk, "--camera", f"station/attic={moved / 'door'}", "--out", desk / "again", start="more")
    assert done.exit_code == 0 and SavedModel.open(desk / "again").known_cameras == found.known_cameras
    old, new = weights(desk / "more"), weights(desk / "again")
    changed = {row for key in old if key.endswith(TABLES[:2]) for row in range(4)
               if not torch.equal(old[key][row], new[key][row])}
    assert changed == {3}


def test_the_embedding_stays_if_nothing_is_said(desk: Path) -> None:
    words = [word for number, name in enumerate(COUNTS) for word in (
        "--camera", f"station/{number}={desk / 'station' / name}")]  # fmt: skip
    assert calibrate(desk, *words).exit_code == 0
    found = SavedModel.open(desk / "start" / "calibrated" / "export")
    assert found.parts == ["backbone", "embedding"]
    assert {key.rpartition(".")[2] for key in weights(found.path)} & {*TABLES} == {"camera_mean", "camera_var"}


def test_images_of_unknown_cameras_are_scored_with_a_warning(desk: Path, by_dataset: Path) -> None:
    words = ["evaluate", str(by_dataset), "--dataset", str(tiny_run.shards() / "park"), "--tta", "none"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and "Rank-1" in done.stdout
    assert "park: the model is not calibrated on 2 of its cameras (1, 2)" in done.stderr


@pytest.mark.parametrize("words, said", [
    ([], "which cameras"),
    (["--camera", "station/3"], "expected NAME=IMAGES"),
    (["--camera", "station/=station/door"], "expected NAME=IMAGES"),
    (["--camera", "=station/door"], "expected NAME=IMAGES"),
    (["--camera", "door=station/door", "--camera", "door/0=station/hall"], "door/0 is given twice"),
    (["--camera", "door/1=station/door", "--camera", "door/01=station/hall"], "door/01: is given twice"),
    (["--camera", "door=station/door", "--name", "door"], "--name: is only for --dataset"),
    (["--camera", "door=nowhere"], "nowhere: no such folder"),
    (["--camera", "door=empty"], "contains no image"),
    (["--camera", "door=station/*/*/none*.jpg"], "no image below station matches"),
    (["--camera", "door=station/door/monday/7.*"], "door/0: has a single image"),
    (["--camera", "door=bad"], "2 of 2 images cannot be used"),
    (["--camera", "station/1=station/hall", "--dataset", "station"], "gives cameras of station too (station/1)"),
    (["--camera", "door=station/door", "--stage", "embedding"], "contains one model"),
    (["--camera", "door=station/door", "--out", "station"], "already exists"),
])  # fmt: skip
def test_what_is_refused(desk: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(desk)
    before = sorted(desk.rglob("*"))
    with pytest.raises((DataError, WeightsError, RecipeError)) as refused:
        calibrate(desk, *words, *["--out", "new"] * ("--out" not in words))
    assert said in str(refused.value)
    assert sorted(desk.rglob("*")) == before


def test_features_of_one_camera_alone_do_not_go_with_batch_norm_of_others(desk: Path) -> None:
    first = calibrate(desk, "--camera", f"door={desk / 'station' / 'door'}", "--out", desk / "first" / "export")
    assert first.exit_code == 0
    with pytest.raises(WeightsError, match="give the images of all cameras"):
        calibrate(desk, "--camera", f"hall={desk / 'station' / 'hall'}", "--features", start="first/export")


@pytest.mark.ranks
def test_killed_it_leaves_nothing_and_bad_input_ends_with_2(desk: Path) -> None:
    command = [sys.executable, "-c", "from embae.trainer.commands.app import main; main()", "calibrate", "start/export",
               "--camera", "door=station/door", "--out", "killed/export"]  # fmt: skip
    (desk / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(desk / "tmp"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=desk, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any("calibrating batch-norm" in line for line in process.stderr)
        process.kill()
    assert not (desk / "killed" / "export").exists()
    assert calibrate(desk, "--camera", f"door={desk / 'station' / 'door'}", "--out", desk / "killed" / "export").stdout
    assert [path.name for path in (desk / "killed").iterdir()] == ["export"]
    done = tiny_run.embae("calibrate", "start/export", "--camera", "door=empty", "--out", "none", cwd=desk)
    assert done.returncode == 2 and "embae: empty: contains no image" in done.stderr
