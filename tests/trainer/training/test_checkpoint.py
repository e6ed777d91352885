"""Checkpoint files: what makes one whole, what is refused, and what a stage does then."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fault_injection import exports, records
from helpers.noise_datasets import settings, shared_shards
from helpers.ranks import on_ranks
from torch import Tensor

from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model import saved as export
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training import checkpoint
from embae.trainer.training.checkpoint import (
    FOLDER,
    MARK,
    META,
    STATE,
    Checkpoint,
    Meta,
    checksum,
    keep,
    list_checkpoints,
    newest,
    place,
    set_back,
)

MODEL = {"embedding.weight": torch.arange(6.0).view(2, 3), "backbone.bn.num_batches_tracked": torch.tensor(7)}
MOMENTS = {"0/model.embedding.weight/exp_avg": torch.ones(2, 3), "0/model.embedding.weight/step": torch.tensor(4.0)}


def write(stage: Path, step: int) -> Path:
    path = place(stage, step)
    checkpoint.write(path, Meta("s", step, 1.5, 2, {"step": 1, "mAP": 0.5}), MODEL, MOMENTS)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, 500)
    assert path == tmp_path / "checkpoints" / "step-000500" and list_checkpoints(tmp_path) == [path]
    opened = Checkpoint.open(path)
    assert opened.meta == Meta("s", 500, 1.5, 2, {"step": 1, "mAP": 0.5})
    for read, wanted in zip(opened.state(), (MODEL, MOMENTS), strict=True):
        assert read.keys() == wanted.keys()
        assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in wanted.items())
    assert sorted(file.name for file in path.iterdir()) == sorted([STATE, META, MARK])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit": flip,
    "the end": lambda file: os.truncate(file, file.stat().st_size - 2),  # of JSON, more than its last newline
    "all of it": lambda file: os.truncate(file, 0),
    "the file": Path.unlink,
    "other bytes": lambda file: file.write_bytes(b"{" * file.stat().st_size),
}


@pytest.mark.parametrize("name", [STATE, META, MARK])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_passed_over(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = write(tmp_path, 4), write(tmp_path, 6)
    DAMAGE[damage](path / name)
    with pytest.raises(WeightsError) as caught:
        Checkpoint.open(path)
    assert str(path / name) in str(caught.value)
    whole = newest(tmp_path)
    assert whole and whole.path == before
    said = capsys.readouterr().err
    assert str(path / name) in said and "going back to the checkpoint before it" in said
    flip(before / STATE)
    assert newest(tmp_path) is None


@pytest.mark.parametrize("tree", [
    {"step": -1}, {"step": True}, {"step": "4"}, {"world_size": None}, {"best": []}, {"more": 1},
])  # fmt: skip
def test_a_description_that_is_none_is_refused_though_its_checksum_is_right(tmp_path: Path, tree: Any) -> None:
    path = write(tmp_path, 4)
    found_tree = json.loads((path / META).read_text()) | tree
    (path / META).write_text(json.dumps(found_tree))
    (path / MARK).write_text(json.dumps({name: checksum(path / name) for name in (STATE, META)}))
    with pytest.raises(WeightsError, match=META):
        Checkpoint.open(path)


def test_one_of_another_version_is_neither_passed_over_nor_removed(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 4)
    (path / META).write_text(json.dumps(json.loads((path / META).read_text()) | {"format": 2}))
    (path / MARK).write_text(json.dumps({name: checksum(path / name) for name in (STATE, META)}))
    with pytest.raises(RecipeError, match="another version of embae wrote it"):
        newest(tmp_path)


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, 4)
    path.rename(path.with_name("step-000004.partial"))
    assert list_checkpoints(tmp_path) == [] and newest(tmp_path) is None
    with pytest.raises(WeightsError, match="not of a whole checkpoint"):
        Checkpoint.open(path)
    set_back(tmp_path, 0)  # the stage begins
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 4)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(state: dict[str, Tensor], file: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(OSError, match=r"state\.safetensors: cannot be written .*No space left"):
        write(tmp_path, 4)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list((tmp_path / FOLDER).iterdir()) == [path]


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (2, 4, 999_999, 1_000_000):
        write(tmp_path, step)
    keep(tmp_path, 3)
    assert [Checkpoint.open(path).meta.step for path in list_checkpoints(tmp_path)] == [1_000_000, 999_999, 4]
    set_back(tmp_path, 999_999)
    assert [Checkpoint.open(path).meta.step for path in list_checkpoints(tmp_path)] == [999_999, 4]
    write(tmp_path, 1_000_000)
    set_back(tmp_path, 1_000_000)
    assert [Checkpoint.open(path).meta.step for path in list_checkpoints(tmp_path)] == [1_000_000, 999_999, 4]


def test_the_saver_keeps_some_and_tells_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embae.trainer.errors import RunError
    from embae.trainer.training.checkpoint_writer import CheckpointWriter

    saver = CheckpointWriter(tmp_path, 2)
    for step in (1, 2, 3):
        saver.save(Meta("s", step, 0.0, 1), MODEL, MOMENTS)
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000002"] and not saver.failed

    def full(state: dict[str, Tensor], file: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    saver.save(Meta("s", 4, 0.0, 1), MODEL, MOMENTS)
    with pytest.raises(RunError, match=r"No space left.*the last whole one is .*step-000003"):
        saver.wait()
    assert saver.failed and [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000002"]


# What a run does with them: whole runs of one stage, in one process.


def _recipe(folder: Path, root: Path, *more: str) -> Recipe:
    return load_recipe("embae-cam", [f"data.root={root / 'labelled'}", "evaluate=null", "checkpoints.every=1",
                              "checkpoints.keep=3", "stages.embedding.log_every=1", "stages.embedding.epochs=null",
                              "stages.embedding.steps=5", "stages.autoencoder.epochs=null",
                              "stages.autoencoder.steps=2", *more], [settings(folder, root / "labelled")])  # fmt: skip


def _undo(stage: Path, *steps: int) -> None:
    """Makes a done stage one that was killed after some checkpoints; the last ones it has are 3, 4 and 5."""
    (stage / "done").unlink(missing_ok=True)
    shutil.rmtree(stage / "export", ignore_errors=True)
    for path in list_checkpoints(stage):
        if Checkpoint.open(path).meta.step not in steps:
            shutil.rmtree(path)


@on_ranks(1)
def taken_up(world: World, folder: Path) -> dict[str, Any]:
    """What becomes of a killed run under many circumstances: its export, its records, and what was said."""
    from embae.trainer.training.run import TrainOptions, train

    root, made = shared_shards(world, folder), {}
    base = folder / "taken-up"
    recipe = _recipe(folder, root)

    def go(run: Path, last: str = "embedding", resume: Path | None = None) -> dict[str, Any]:
        out, err, error = io.StringIO(), io.StringIO(), ""
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                train(recipe, run, world, StopSignals(), TrainOptions(last=last, resume=resume))
            except (WeightsError, ValueError) as caught:
                error = f"{type(caught).__name__}: {caught}"
        left = [path.name for path in list_checkpoints(run / last)]
        whole = [path for path in list_checkpoints(run / last) if _opens(path)]
        return {"out": out.getvalue(), "err": err.getvalue(), "error": error, "exports": exports(run),
                "records": [] if error else records(run), "left": left, "whole": len(whole)}

    def copy(name: str, *steps: int) -> Path:
        shutil.copytree(base / "whole", base / name)
        _undo(base / name / "embedding", *steps)
        return base / name

    made["whole"] = go(base / "whole")
    made["killed"] = go(copy("killed", 3, 4))
    made["before any"] = go(copy("before any"))
    run = copy("damaged", 3, 4)
    flip(list_checkpoints(run / "embedding")[0] / STATE)
    made["one damaged"] = go(run)
    run = copy("all damaged", 3, 4, 5)
    for path in list_checkpoints(run / "embedding"):
        flip(path / STATE)
    made["all damaged"] = go(run)
    run = copy("moved", 3, 4, 5)
    made["moved away"] = go(run, resume=_moved(run))
    run = copy("asked", 3, 4, 5)
    made["asked for"] = go(run, resume=list_checkpoints(run / "embedding")[2])
    again = list_checkpoints(run / "embedding")[2]
    _undo(run / "embedding", 4)
    made["asked for again"] = go(run, resume=again)  # as a job that is queued again does: it is not set back again
    made["elsewhere"] = go(base / "new", resume=base / "killed" / "embedding" / FOLDER / "step-000003")
    made["none"] = go(base / "none", resume=base / "whole" / "embedding" / "export")
    made["not there"] = go(base / "none", resume=base / "nowhere")
    made["done"] = go(base / "whole", resume=list_checkpoints(base / "whole" / "embedding")[0])
    other = base / "other-stage"
    shutil.copytree(list_checkpoints(base / "whole" / "embedding")[0], other)
    tree = json.loads((other / META).read_text()) | {"stage": "supervised"}
    (other / META).write_text(json.dumps(tree))
    (other / MARK).write_text(json.dumps({name: checksum(other / name) for name in (STATE, META)}))
    made["no such stage"] = go(copy("no-such-stage", 3), resume=other)
    made["second stage"] = go(base / "whole", last="autoencoder")
    shutil.copytree(base / "whole", base / "frozen")
    _undo(base / "frozen" / "autoencoder", 1)
    path = list_checkpoints(base / "frozen" / "autoencoder")[0]
    model, moments = Checkpoint.open(path).state()
    key = next(key for key in model if key.startswith("backbone") and key.endswith("weight"))
    model[key] = model[key] + 1
    checkpoint.write(path, Checkpoint.open(path).meta, model, moments)
    made["frozen moved"] = go(base / "frozen", last="autoencoder")
    return made


def _opens(path: Path) -> bool:
    try:
        return bool(Checkpoint.open(path))
    except WeightsError:
        return False


def _moved(run: Path) -> Path:
    """A checkpoint of a run, away from it."""
    target = run.parent / "away"
    list_checkpoints(run / "embedding")[1].rename(target)
    return target


@pytest.mark.parametrize("how, start, said", [
    ("killed", 4, ""),
    ("before any", 0, ""),
    ("one damaged", 3, "step-000004/state.safetensors: damaged"),
    ("all damaged", 0, "step-000003/state.safetensors: damaged"),
    ("moved away", 4, ""),
    ("asked for", 3, ""),
    ("asked for again", 4, "has resumed from"),
    ("elsewhere", 3, ""),
])  # fmt: skip
def test_a_run_goes_on_from_the_right_one_to_the_same_end(
    computed: Callable[..., Any], how: str, start: int, said: str
) -> None:
    whole, now = computed(taken_up, 1)[0]["whole"], computed(taken_up, 1)[0][how]
    assert not now["error"] and said in now["err"]
    assert (f"resumes after step {start}, from" in now["out"]) == (start > 0)
    assert now["exports"] == whole["exports"] and whole["exports"]
    assert now["records"] == (whole["records"] if how != "elsewhere" else whole["records"][start:])
    assert [step for _, step, _ in whole["records"]] == [1, 2, 3, 4, 5]
    kept = ["step-000005", "step-000004", "step-000003"]
    assert now["left"] == kept[:2 if how == "asked for again" else 3]
    assert now["whole"] == len(now["left"])


@pytest.mark.parametrize("how, said", [
    ("none", "whole/embedding/export/complete: not of a whole checkpoint"),
    ("not there", "nowhere/complete: not of a whole checkpoint"),
    ("done", "stage embedding is done"),
    ("no such stage", "stage supervised"),
    ("frozen moved", "its backbone, which is frozen, is not that of embedding"),
])  # fmt: skip
def test_what_cannot_be_gone_on_from_is_an_error(computed: Callable[..., Any], how: str, said: str) -> None:
    now = computed(taken_up, 1)[0][how]
    assert now["error"].startswith("WeightsError: ") and said in now["error"], now["error"]
