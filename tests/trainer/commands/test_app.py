"""The command line as a user meets it: processes, what they print where, exit codes, and what is there afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny_run
from helpers.tiny_run import embae
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from embae.datasets.index.arrow_index import Index
from embae.trainer.commands.app import app
from embae.trainer.evaluation.evaluate import evaluate
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.saved import SavedModel
from embae.trainer.runs.score_table import SHOWN
from embae.trainer.runtime.distributed import World
from embae.trainer.training.checkpoint import Checkpoint

pytestmark = pytest.mark.ranks


def sentence(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """What an error said after what went before: no traceback, and this exit code."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    before, start, said = done.stderr.rpartition("embae: ")
    assert start and (not before or before.endswith("\n"))
    return said.strip()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, stage: str) -> dict[str, np.ndarray]:
    return load_file(run / stage / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and shards."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_run.shards(), folder / "shards")
    tiny_run.write(folder, tiny_run.tree())
    return folder


@pytest.fixture(scope="module")
def finished(desk: Path) -> subprocess.CompletedProcess[str]:
    """The whole recipe on two ranks, in desk/runs/tiny."""
    done = embae("train", "tiny.yaml", "--nproc", 2, cwd=desk)
    assert done.returncode == 0, done.stderr
    return done


# Recipes


def test_recipes_list_names_each_with_its_first_line(tmp_path: Path) -> None:
    text = CliRunner().invoke(app, ["recipes", "list"]).stdout
    assert max(map(len, text.splitlines())) <= 80
    recipes, settings = (re.split(r"\n(?=\S)", table.split("─\n", 1)[1]) for table in text.split("\n\n"))
    for rows, names in ((recipes, {"baseline", "embae-cam", "quickstart"}), (settings, {"quick", "several-sources"})):
        assert {row.split()[0] for row in rows} >= names
        assert all(len(row.split(maxsplit=1)[1]) > 20 and "#" not in row for row in rows)


def test_recipes_show_prints_a_recipe_that_can_be_changed(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["recipes", "show", "embae-cam"]).stdout
    (tmp_path / "mine.yaml").write_text(shown)
    done = CliRunner().invoke(app, ["recipes", "check", str(tmp_path / "mine.yaml"), "seed=3"])
    assert (done.exit_code, done.stdout.split(":")[0]) == (0, "embae-cam")


def test_recipes_check_resolved_is_a_recipe(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["recipes", "check", "quickstart", "seed=3", "--resolved"])
    found = yaml.safe_load(done.stdout)
    assert found["seed"] == 3 and found["stages"]["embedding"]["optimizer"]["betas"] == [0.9, 0.999]


def test_a_wrong_recipe_is_reported_on_stderr_without_importing_torch(tmp_path: Path) -> None:
    command = "from embae.trainer.commands.app import main; main()"
    done = tiny_run.program("-X", "importtime", "-c", command, "recipes", "check", "embae-cam", "seeds=1", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "  seeds: unknown key; did you mean seed?" in done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported and not imported & {"torch", "deepspeed", "timm", "nvidia.dali", "pyarrow.dataset"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["recipes"],
        ["train"],
        ["train", "quickstart", "--nproc", "0"],
        ["trian"],
        ["evaluate", "runs/x", "--tta", "twice"],
        ["shard", "folder", "--sizes", "3"],
    ],
)
def test_usage_errors_are_code_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and done.stdout == "" and "Usage:" in done.stderr


def test_every_command_has_help_with_an_example() -> None:
    for name in ("shard", "inspect", "train", "evaluate"):
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0 and f"Example: embae {name}" in " ".join(done.stdout.split())


# Shards


def test_shard_and_inspect(tmp_path: Path) -> None:
    options = [f"{key}={value}" for key, value in tiny_run.OPTIONS.items()]
    done = embae(
        "shard", "synthetic", "domain=mall", *options, "--name", "mall", "--size", "36x18", "--workers", 1, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    index = Index.open(tmp_path / "shards" / "mall")
    assert done.stdout == f"{tmp_path / 'shards' / 'mall'}: {len(index)} images in {len(index.shards)} shards\n"
    assert index.image == (36, 18)
    again = embae("shard", "synthetic", "domain=mall", *options, "--name", "mall", "--size", "36x18", cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    sheet = tmp_path / "sheet.png"
    shown = CliRunner().invoke(app, ["inspect", str(index.root), "--json", "--verify", "--sheet", str(sheet)])
    found = json.loads(shown.stdout)
    assert shown.exit_code == 0 and found["problems"] == [] and found["images"] == len(index)
    assert found["splits"]["query"]["images"] == index.count("query")
    with Image.open(sheet) as image:
        assert image.width > 36
    plain = CliRunner().invoke(app, ["inspect", str(index.root), "--verify"]).stdout
    assert "mall" in plain and f"verified: all {len(index)} images" in plain

    tar = index.root / index.shards[0]
    data = bytearray(tar.read_bytes())
    data[int(index.offset[0]) + int(index.size[0]) // 2] ^= 1
    tar.write_bytes(data)
    said = sentence(embae("inspect", index.root, "--verify", cwd=tmp_path))
    assert index.key(0) in said and tar.name in said and "mall: one problem\n" in said


def test_shard_a_folder_of_images(tmp_path: Path) -> None:
    for split, pid, camid in [("train", 1, 1), ("train", 1, 2), ("query", 2, 1), ("gallery", 2, 2)]:
        path = tmp_path / "photos" / split / f"{pid}_c{camid}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 48), (40 * pid, 40 * camid, 9)).save(path)
    pattern = r"pattern=(?P<pid>\d+)_c(?P<camid>\d+)"
    done = embae(
        "shard", "folder", pattern, "--root", "photos", "--name", "mine", "--out", "s", "--workers", 1, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    index = Index.open(tmp_path / "s" / "mine")
    assert (index.pid.tolist(), index.camid.tolist()) == ([1, 1, 2, 2], [1, 2, 1, 2])
    assert index.card["source"]["options"] == {"pattern": pattern.partition("=")[2]}


@pytest.mark.parametrize("arguments, said", [
    (["shard", "market"], "did you mean market1501?"),
    (["shard", "market1501", "--root", "none"], "none: no such folder"),
    (["shard", "synthetic", "domain=moon"], "moon"), (["shard", "synthetic", "size"], "expected KEY=VALUE"),
    (["shard", "synthetic", "domain=mall", "--size", "288"], "HEIGHTxWIDTH"),
    (["inspect", "shards/none"], "no such dataset"),
])  # fmt: skip
def test_bad_data_is_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in sentence(embae(*arguments, cwd=tmp_path))
    assert not (tmp_path / "shards").exists()


# Training


def test_train_prints_its_folder_first_and_the_table_last(
    desk: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    lines = finished.stdout.splitlines()
    assert lines[0] == f"run folder: {Path('runs/tiny')}"
    assert lines[-2].startswith("Baseline ") and lines[-1].startswith("EmbAE-cam ")
    assert lines[-5].startswith("park, ") and lines[-4].startswith("model ")
    for stage in tiny_run.FOUR:
        assert any(line.startswith(f"[{stage}] step ") for line in lines)
    assert finished.stderr == ""


def test_the_run_folder(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    run = desk / "runs" / "tiny"
    assert {path.name for path in run.iterdir()} == {
        *tiny_run.FOUR,
        "recipe.yaml",
        "metrics.jsonl",
        "tensorboard",
        "evaluation",
        "cache",
        ".lock",
    }
    assert "world size 2" in (run / "recipe.yaml").read_text()
    for stage in tiny_run.FOUR:
        scored = {"evaluation"} if stage in ("embedding", "target-embedding") else set()
        assert {path.name for path in (run / stage).iterdir()} == {"export", "done", "checkpoints"} | scored
        assert {path.name for path in (run / stage / "export").iterdir()} == {"model.json", "model.safetensors"}
    heads = json.loads((run / "target-embedding" / "export" / "model.json").read_text())["heads"]
    assert heads == [["park", 1], ["park", 2]]
    heads = json.loads((run / "autoencoder" / "export" / "model.json").read_text())["heads"]
    assert heads == [["square", 1], ["square", 2], ["tower", 1], ["tower", 2]]


def test_metrics(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    found = records(desk / "runs" / "tiny")
    train = [record for record in found if record["kind"] == "train"]
    for stage in tiny_run.FOUR:
        own = [record for record in train if record["stage"] == stage]
        stop = json.loads((desk / "runs" / "tiny" / stage / "done").read_text())["steps"]
        assert [record["step"] for record in own] == sorted(
            {*range(2, stop + 1, 2), stop}
        )  # log_every: 2, and the last
        assert {record["loader"] for record in own} == {"dali" if stage == "embedding" else "features"}
        assert all(record["lr"] == 1e-3 and record["loss"] > 0 and record["images_per_s"] > 0 for record in own)
    scored = {record["stage"]: record for record in found if record["kind"] == "eval"}
    assert set(scored) == {"embedding", "target-embedding"}
    assert scored["embedding"]["dataset"] == "park" and scored["embedding"]["step"] == train[5]["step"]


def test_tensorboard(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    for stage in tiny_run.FOUR:
        board = EventAccumulator(str(desk / "runs" / "tiny" / "tensorboard" / stage))
        board.Reload()
        scalars = set(board.Tags()["scalars"])
        assert {f"train/{name}" for name in ("loss", "lr", "images_per_s")} <= scalars
        assert {f"eval/{name}" for name in SHOWN} <= scalars or stage not in ("embedding", "target-embedding")
        assert ("train/right" in scalars) == (stage == "embedding")
        assert board.Tags()["images"] == (["inputs"] if stage == "embedding" else [])


def test_evaluation_files(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    folder, park = desk / "runs" / "tiny" / "evaluation", Index.open(desk / "shards" / "park")
    found = json.loads((folder / "park.json").read_text())
    assert (found["dataset"], found["tta"], list(found["rows"])) == ("park", "flip", ["Baseline", "EmbAE-cam"])
    for row, stage in (("Baseline", "embedding"), ("EmbAE-cam", "target-embedding")):
        assert found["rows"][row]["queries"] == park.count("query")
        low, high = found["rows"][row]["interval"]["mAP"]
        assert low <= found["rows"][row]["mAP"] <= high
        kept = np.load(folder / f"park-{stage}.npz")
        assert kept["query"].shape == (park.count("query"), 8) and kept["gallery"].shape == (park.count("gallery"), 8)
    line = next(line for line in finished.stdout.splitlines() if line.startswith("EmbAE-cam"))
    assert f"{found['rows']['EmbAE-cam']['mAP']:.3f}" in line.split()


def test_two_ranks_embed_as_one_does(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    opened, keep = SavedModel.open(desk / "runs" / "tiny" / "embedding" / "export"), tmp_path / "park.npz"
    alone, park = World(0, 0, 1, torch.device("cpu")), Index.open(desk / "shards" / "park")
    evaluate(opened.restore(), park, Inference(opened.spec, alone, tmp_path, Reading(threads=1), "flip"), keep=keep)
    kept, found = np.load(desk / "runs" / "tiny" / "evaluation" / "park-embedding.npz"), np.load(keep)
    np.testing.assert_array_equal(found["query"], kept["query"])
    np.testing.assert_array_equal(found["gallery"], kept["gallery"])


def test_stages_freeze_what_they_say(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    run = desk / "runs" / "tiny"
    found = [weights(run, stage) for stage in tiny_run.FOUR]

    def moved(first: int, second: int) -> set[str]:
        both = found[first].keys() & found[second].keys()
        return {key.split(".")[0] for key in both if not np.array_equal(found[first][key], found[second][key])}

    assert moved(0, 1) == set()
    assert moved(1, 2) <= {"nuisance"}
    assert moved(2, 3) == {"embedding", "decoder"}


def test_the_same_command_again_only_shows_the_scores(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    shutil.copytree(desk / "runs" / "tiny", tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/export/*")}
    done = embae("train", "tiny.yaml", "--nproc", 1, "--out", tmp_path / "run", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/export/*")}
    old, new = records(desk / "runs" / "tiny"), records(tmp_path / "run")
    assert new == old  # what was scored is not scored again
    assert done.stdout.splitlines()[-5:] == finished.stdout.splitlines()[-5:]
    assert "[embedding] done before, 11 steps" in done.stdout


def test_a_changed_recipe_is_refused_by_its_key(desk: Path, finished: subprocess.CompletedProcess[str]) -> None:
    before = (desk / "runs" / "tiny" / "recipe.yaml").read_bytes()
    done = embae("train", "tiny.yaml", "seed=4", "stages.embedding.epochs=2", cwd=desk)
    said = sentence(done)
    assert "seed: 0 in the folder, 4 now" in said and "stages.embedding.epochs: 1.0 in the folder, 2.0 now" in said
    assert (desk / "runs" / "tiny" / "recipe.yaml").read_bytes() == before


def test_torchrun_and_evaluating_on_the_way_give_the_same_weights(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    done = tiny_run.program(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "-m",
        "embae.trainer",
        "tiny.yaml",
        "stages.embedding.evaluate_every=4",
        "--stage",
        "embedding",
        "--out",
        tmp_path / "run",
        cwd=desk,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1 and done.stdout.startswith("run folder: ")
    wanted, found = weights(desk / "runs" / "tiny", "embedding"), weights(tmp_path / "run", "embedding")
    assert wanted.keys() == found.keys() and all(np.array_equal(wanted[key], found[key]) for key in wanted)
    assert [record["step"] for record in records(tmp_path / "run") if record["kind"] == "eval"] == [4, 8]
    # --stage stops after it: no other stage, no scores.
    assert not (tmp_path / "run" / "autoencoder").exists() and not (tmp_path / "run" / "evaluation").exists()
    assert "park, " not in done.stdout


def test_an_unlabelled_target_and_the_other_loader(desk: Path, tmp_path: Path) -> None:
    with tarfile.open(next((desk / "shards" / "park").glob("train*.tar"))) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                (tmp_path / "photos").mkdir(exist_ok=True)
                (tmp_path / "photos" / Path(member.name).name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    done = embae("shard", "folder", "--root", tmp_path / "photos", "--name", "street", "--workers", 1, cwd=desk)
    assert done.returncode == 0, done.stderr
    done = embae(
        "train",
        "tiny.yaml",
        "data.target=street",
        "data.loader=webdataset",
        "--nproc",
        1,
        "--out",
        tmp_path / "run",
        cwd=desk,
    )
    assert done.returncode == 0, done.stderr
    assert "street has no labelled query and gallery, so there is nothing to score" in done.stdout.splitlines()[-1]
    assert str(tmp_path / "run" / "target-embedding" / "export") in done.stdout.splitlines()[-1]
    found = records(tmp_path / "run")
    train = [record for record in found if record["kind"] == "train"]
    assert {record["loader"] for record in train if record["stage"] == "embedding"} == {"webdataset"}
    assert not [record for record in found if record["kind"] == "eval"]
    assert "nothing to score" in sentence(embae("evaluate", tmp_path / "run", cwd=desk))


def test_a_damaged_image_ends_a_started_run_with_code_1(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "shards", tmp_path / "shards")
    square = Index.open(tmp_path / "shards" / "square")
    tar = square.root / square.shards[0]
    data = bytearray(tar.read_bytes())
    for row in range(*square.rows("train").indices(len(square))[:2]):
        data[int(square.offset[row]) + int(square.size[row]) // 2] ^= 1
    tar.write_bytes(data)
    for loader in ("dali", "webdataset"):
        done = embae(
            "train",
            desk / "tiny.yaml",
            f"data.loader={loader}",
            "--nproc",
            1,
            "--stage",
            "embedding",
            "--out",
            tmp_path / loader,
            cwd=tmp_path,
        )
        said = sentence(done, code=1)
        assert str(tar) in said or tar.name in said
        assert "square" in said


def test_ctrl_c_ends_a_run_with_a_sentence(desk: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from embae.trainer.commands.app import main; main()",
        "train",
        "tiny.yaml",
        "stages.embedding.epochs=9999",
        "--nproc",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w+") as stderr:
        running = subprocess.Popen(
            command, cwd=desk, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
        try:
            assert running.stdout
            for line in running.stdout:
                if "step 4/" in line:
                    break
            start = time.monotonic()
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
            assert running.wait(timeout=60) == 75
            assert time.monotonic() - start < 20
            running.stdout.close()
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said and not (tmp_path / "run" / "embedding" / "done").exists()
    assert "stopped by SIGINT after step" in said
    (whole,) = (tmp_path / "run" / "embedding" / "checkpoints").iterdir()
    assert Checkpoint.open(whole).meta.step >= 4 and (tmp_path / "run" / "stopped").exists()


# Scoring


def test_evaluate_a_run_gives_the_scores_of_its_end(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    done = embae("evaluate", "runs/tiny", "--json", tmp_path / "new" / "scores.json", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == finished.stdout.splitlines()[-5:]
    wanted = json.loads((desk / "runs" / "tiny" / "evaluation" / "park.json").read_text())
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == wanted


def test_evaluate_on_two_ranks_with_expansion_and_re_ranking(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    found = {}
    for ranks in (1, 2):
        words = ("--expand", 2, "--rerank", "--nproc", ranks, "--json", tmp_path / f"{ranks}.json")
        done = embae("evaluate", "runs/tiny", *words, cwd=desk)
        assert done.returncode == 0, done.stderr
        found[ranks] = (tmp_path / f"{ranks}.json").read_text(), done.stdout
        assert done.stdout.startswith("park, ")
        assert "flip, queries expanded by 2 images, k-reciprocal re-ranking, mAP" in " ".join(done.stdout.split())
    assert found[1] == found[2]
    plain = json.loads((desk / "runs" / "tiny" / "evaluation" / "park.json").read_text())
    again = json.loads(found[1][0])
    assert (again["rerank"], again["expand"], plain["rerank"], plain["expand"]) == (True, 2, False, 0)
    assert again["rows"] != plain["rows"]


def test_evaluate_another_dataset(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(desk)
    by_name = CliRunner().invoke(
        app, ["evaluate", "runs/tiny", "--dataset", "tower", "--tta", "none"], catch_exceptions=False
    )
    assert by_name.stdout.startswith("tower, ") and "augmentation: none" in by_name.stdout
    (desk / "tower").mkdir()  # something else of that name, where the command is started
    again = CliRunner().invoke(
        app, ["evaluate", "runs/tiny", "--dataset", "tower", "--tta", "none"], catch_exceptions=False
    )
    assert again.stdout == by_name.stdout
    export = desk / "runs" / "tiny" / "embedding" / "export"
    path = tmp_path / "scores.json"
    by_folder = CliRunner().invoke(
        app,
        [
            "evaluate",
            str(export),
            "--dataset",
            str(desk / "shards" / "tower"),
            "--tta",
            "ten-crop",
            "--json",
            str(path),
        ],
        catch_exceptions=False,
    )
    assert by_folder.exit_code == 0 and "augmentation: ten-crop" in by_folder.stdout
    found = json.loads(path.read_text())
    assert (found["dataset"], found["tta"], list(found["rows"])) == ("tower", "ten-crop", ["embedding"])


@pytest.mark.parametrize("arguments, said", [
    (["nowhere"], "nowhere: neither a run folder (recipe.yaml) nor an export (model.json)"),
    (["runs/tiny", "--dataset", "lake"], "shards/lake: no such dataset; datasets beside it: park, square"),
    (["runs/tiny/embedding/export"], "give --dataset"),
])  # fmt: skip
def test_evaluate_errors(
    desk: Path, finished: subprocess.CompletedProcess[str], arguments: list[str], said: str
) -> None:
    assert said in sentence(embae("evaluate", *arguments, cwd=desk))


def test_evaluate_before_anything_is_done(
    desk: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    shutil.copy(desk / "runs" / "tiny" / "recipe.yaml", tmp_path)
    assert "none of the stages embedding, target-embedding is done" in sentence(embae("evaluate", tmp_path, cwd=desk))


def test_a_run_that_scores_nothing_needs_no_target(tmp_path: Path) -> None:
    tree = tiny_run.tree(run=["embedding"], evaluate={}, data__root=str(tiny_run.shards()), data__target="lake")
    done = tiny_run.embae("train", tiny_run.write(tmp_path, tree), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "embedding" / "export" / "model.safetensors").exists()
