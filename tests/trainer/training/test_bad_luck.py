"""What may befall a run beside a kill: a loss that is not finite, a rank that hangs, a full disk, a second run."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fault_injection import Command, Ended, Fault, exports, records
from helpers.noise_datasets import settings, shared_shards
from helpers.ranks import on_ranks
from helpers.run_parts import begin_stage
from torch import Tensor

from embae.trainer.recipe.load import load_recipe
from embae.trainer.runtime.distributed import World
from embae.trainer.training.checkpoint import Checkpoint, list_checkpoints

pytestmark = pytest.mark.ranks

SAVED = r"rename .*/embedding/checkpoints/step-"
TIMEOUT = 12  # seconds; a rank that imports much on a busy machine is silent for some
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def sentence(ended: Ended, code: int = 1) -> str:
    assert ended.code == code, ended
    assert "Traceback" not in ended.err, ended.err
    return ended.err


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all but running statistics is the same."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items() if not key.endswith(STATISTICS)
    )


def test_a_loss_that_is_not_finite(undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    from embae.datasets.index.arrow_index import Index

    folder, words = undisturbed
    run = tmp_path / "run"
    huge = ("stages.embedding.optimizer.lr=1e30", "checkpoints.every=1", "--stage", "embedding")
    command = Command(*words, *huge, "--out", run, cwd=folder, notes=tmp_path / "notes")
    said = sentence(command.start())
    assert "stage embedding, step 2: the loss is" in said and "no weight was moved by it" in said
    failed = run / "embedding" / "failed" / "step-000001"
    assert str(failed) in said
    (before, moments), (left, left_moments) = (
        Checkpoint.open(path).state() for path in (run / "embedding" / "checkpoints" / "step-000001", failed)
    )
    assert same_weights(before, left) and same_weights(moments, left_moments) and len(moments) > 100
    tree = json.loads((failed / "batch.json").read_text())
    assert tree["step"] == 2 and len(tree["images"]) == 6 and tree["losses"]["loss"] in ("nan", "inf")
    for image in tree["images"]:
        index = Index.open(folder / "shards" / image["dataset"])
        assert image["key"] in {index.key(row) for row in range(len(index))}
    # Another recipe's checkpoint is taken too, and the same step fails again for the same reason.
    again = command.start(None, "--resume", failed)
    assert "stage embedding, step 2: the loss is" in sentence(again) and "resumes after step 1, from" in again.out
    assert json.loads((failed / "batch.json").read_text())["images"] == tree["images"]


@on_ranks(2)
def poisoned(world: World, folder: Path) -> dict[str, Any]:
    """A batch with a not-a-number on the second rank, at the third step."""

    root, run, made = shared_shards(world, folder), folder / "poisoned", {}
    recipe = load_recipe("embae-cam", [f"data.root={root / 'labelled'}", "stages.embedding.log_every=1"],
                  [settings(folder, root / "labelled")])  # fmt: skip
    run.mkdir(exist_ok=True)
    stage = begin_stage(recipe, "embedding", run, world)

    class Poison:
        name = "poison"

        def __init__(self, loader: Any):
            self._loader = loader

        def __iter__(self) -> Iterator[Any]:
            for batch in self._loader:
                if batch.step == 2 and world.rank == 1:
                    batch.inputs[0, 0, 0, 0] = float("nan")
                yield batch

    stage.loader = Poison(stage.loader)  # type: ignore[assignment]
    try:
        for step in stage.train():
            made[f"after {step}"] = stage.updates.state(), stage.updates.moments()
    except FloatingPointError as error:
        made["said"] = str(error)
    except SystemExit as error:
        made["said"] = error.code
    made["left"] = Checkpoint.open(run / "embedding" / "failed" / "step-000002").state()
    made["images"] = json.loads((run / "embedding" / "failed" / "step-000002" / "batch.json").read_text())["images"]
    sampler = stage.sampler
    rows = sampler.plan(2)
    where = zip(*sampler.view.locate(rows), strict=True)
    made["plan"] = [{"dataset": sampler.view.names[number], "key": sampler.view.indexes[number].key(row)}
                    for number, row in where]  # fmt: skip
    return made


def test_a_batch_that_is_not_finite_on_one_rank_stops_all_at_that_step(computed: Callable[..., Any]) -> None:
    first, second = computed(poisoned, 2)
    assert "stage embedding, step 3: the loss is nan" in first["said"] and second["said"] == 1
    for rank in (first, second):
        assert [key for key in rank if key.startswith("after")] == ["after 1", "after 2"]
        for before, left in zip(rank["after 2"], rank["left"], strict=True):
            assert same_weights(before, left)
            assert all(value.isfinite().all() for key, value in left.items() if not key.endswith(STATISTICS))
        assert rank["images"] == rank["plan"]


@pytest.mark.parametrize("whom, named", [("other", 1), ("self", 0)])
def test_a_rank_that_hangs_is_named_by_the_one_that_waits(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path, whom: str, named: int
) -> None:
    folder, words = undisturbed
    command = Command(*words, f"timeout={TIMEOUT}", "--stage", "embedding", "--out", tmp_path / "run", cwd=folder,
                      notes=tmp_path / "notes")  # fmt: skip
    ended = command.start(Fault(SAVED, 1, to=whom, signal=signal.SIGSTOP))
    said = sentence(ended)
    assert f"embae: rank {1 - named} (stage embedding, step" in said and f"rank {named} (process" in said, said
    # Two seconds more until the launcher stops waiting for others, ten until it kills who is stopped.
    assert ended.after is not None and TIMEOUT - 1 < ended.after < TIMEOUT + 30, ended


def test_a_second_run_in_the_same_folder_is_refused(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path
) -> None:
    folder, words = undisturbed
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 1 on elsewhere")
        held.flush()
        ended = Command(*words[:-1], 1, "--out", run, cwd=folder, notes=tmp_path / "notes").start()
    assert "process 1 on elsewhere is running in this folder" in sentence(ended, code=2)
    assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small disk of its own, where we may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(path)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True, timeout=20).returncode
    yield path if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", str(path)], check=False, timeout=20)


def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path, disk: Path | None
) -> None:
    folder, words = undisturbed
    run = (disk or tmp_path) / "run"
    command = Command(*words, "--stage", "embedding", "--out", run, cwd=folder, notes=tmp_path / "notes")
    ended = command.start(Fault(SAVED, 2, signal=signal.SIGTERM))
    assert ended.code == 75, ended
    whole = list_checkpoints(run / "embedding")
    size = sum(file.stat().st_size for file in whole[0].iterdir())
    limits: dict[str, Any] = {}
    if disk:
        filler, left = disk / "filler", os.statvfs(disk)
        with filler.open("wb") as file:
            file.write(bytes(left.f_bavail * left.f_frsize - size // 2))
    else:
        limits["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    said = sentence(command.start(None, **limits))
    assert "a checkpoint could not be written" in said and "Make room; the same command then resumes" in said, said
    assert str(whole[0]) in said and list_checkpoints(run / "embedding") == whole
    assert [Checkpoint.open(path).path for path in whole] == whole
    if disk:
        filler.unlink()
    ended = command.start()
    assert ended.code == 0 and f"resumes after step {int(whole[0].name[5:])}" in ended.out, ended
    assert not list((run / "embedding").rglob("*.partial"))
    mine, all_ = exports(run), exports(folder / "whole")
    assert mine == {key: value for key, value in all_.items() if key.startswith("embedding/")} and mine
    assert records(run) == [record for record in records(folder / "whole") if record[0] == "embedding"]


def test_an_export_onto_a_full_disk_is_the_systems_error_not_a_bug(disk: Path | None) -> None:
    from helpers.toy_models import KEYS, model, parts_in

    from embae.trainer.model import saved as export

    if not disk:
        pytest.skip("no disk of its own can be mounted here")
    left = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(left.f_bavail * left.f_frsize - 100_000))
    made = model(parts_in("frozen", "frozen"))
    spec = export.ImageSpec(32, 16, (0, 0, 0), (1, 1, 1))
    with pytest.raises(OSError, match=r"model\.safetensors: cannot be written .*No space left"):
        export.write(disk, made, made.state_dict(), keys=KEYS, spec=spec)
