"""Comparisons: what recipes share is trained once, and what cannot be compared is refused before anything starts."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import noise_datasets
from helpers.ranks import on_ranks
from helpers.tiny_run import embae
from PIL import Image

from embae.trainer.comparison.compare import plan, prepare, results
from embae.trainer.errors import RecipeError
from embae.trainer.runs.stage_folder import EXPORT, read_cost
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals

pytestmark = pytest.mark.ranks

STAGES = ("embedding", "autoencoder", "target-nuisance", "target-embedding")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_datasets.shards(tmp_path_factory.mktemp("shards"))


# The command


@pytest.fixture(scope="module")
def desk(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a comparison of three recipes with two seeds, ``cmp``, and what the command said."""
    folder = tmp_path_factory.mktemp("desk")
    made = noise_datasets.settings(folder, root / "labelled")
    found = embae("compare", "embae-new", "embae-fix", "bn-camera", "--settings", made, "--seeds", 2, "--nproc", 2,
                  "--out", "cmp", "stages.embedding.log_every=1", cwd=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder, found


def test_the_command_prints_the_table_last(desk: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, found = desk
    lines = found.stdout.splitlines()
    assert lines[0] == "comparison of 6 runs in cmp"
    table = found.stdout[found.stdout.rindex("(6 of 6)"):]
    for row in ("Baseline", "EmbAE-new", "EmbAE-fix", "BN per camera"):
        assert re.search(rf"^{row} +.*\d\.\d\d\d", table, re.MULTILINE), row
    for number, (name, seed) in enumerate((name, seed) for seed in (0, 1) for name in
                                          ("embae-new", "embae-fix", "bn-camera")):
        assert f"── {name}, seed {seed} ({number + 1} of 6) ──" in lines
    assert "comparison.md" in found.stderr


def test_what_the_recipes_share_is_trained_once_a_seed(desk: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, found = desk
    runs = re.split(r"── .* ──\n", found.stdout)[1:]
    again = [sorted(re.findall(r"^\[(\S+)\] done before", run, re.MULTILINE)) for run in runs]
    assert again == [[], ["autoencoder", "embedding"], ["embedding"]] * 2
    assert len(list((folder / "cmp" / "stages").iterdir())) == 2 * (4 + 1 + 1)
    for seed in (0, 1):
        own = [folder / "cmp" / "runs" / f"{name}-{seed}" for name in ("embae-new", "embae-fix", "bn-camera")]
        assert len({(run / "embedding" / EXPORT / "model.safetensors").stat().st_ino for run in own}) == 1
        assert len({(run / "target-embedding").resolve() for run in own[:2]}) == 2
        assert all((run / "cache").resolve() == (folder / "cmp" / "cache").resolve() for run in own)
        assert not any(Path(path).is_absolute() for run in own for path in [(run / "embedding").readlink()])
    seeds = [(folder / "cmp" / "runs" / f"embae-new-{seed}" / "embedding" / EXPORT / "model.safetensors").read_bytes()
             for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def test_what_the_command_leaves(desk: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = desk
    text = (folder / "cmp" / "comparison.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"JSON knows no {name}"))
    assert (found["dataset"], found["sources"], found["tta"]) == ("target", ["one", "two"], "none")
    assert len(found["results"]) == 2 * 6
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["Baseline", "EmbAE-new", "EmbAE-fix", "BN per camera"]
    assert rows["Baseline"]["recipes"] == ["embae-new", "embae-fix", "bn-camera"]
    assert all(row["seeds"] == [0, 1] and row["scores"]["mAP"]["sd"] is not None for row in rows.values())
    assert [rows[name]["start"] for name in rows] == [None, "Baseline", "Baseline", "Baseline"]
    assert [rows[name]["trained"] for name in rows] == [True, True, True, False]
    assert all(0 < row["probes"]["camera from z"]["mean"] <= 1 for row in rows.values())
    assert len(found["results"]) == 12
    markdown = (folder / "cmp" / "comparison.md").read_text()
    assert all(row in markdown for row in rows)
    with Image.open(folder / "cmp" / "comparison.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    assert not list((folder / "cmp").glob("*.partial"))


def test_results_say_what_each_row_took(desk: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    folder, _ = desk
    overrides = ["stages.embedding.log_every=1"]
    made = str(next(folder.glob("small-*.yaml")))
    runs = plan(["embae-new", "embae-fix", "bn-camera"], overrides, [made], 2, folder / "cmp")
    run = runs[0]
    cost = {name: read_cost(run.folder, name) for name in STAGES}
    base, new = results(run)
    assert (base.row, base.start, base.adaptation) == ("Baseline", None, 0)
    assert base.seconds == pytest.approx(cost["embedding"].rank_seconds) and base.images == cost["embedding"].images
    assert (new.row, new.start, new.recipe, new.seed) == ("EmbAE-new", "Baseline", "embae-new", 0)
    assert new.seconds == pytest.approx(sum(one.rank_seconds for one in cost.values()))
    assert new.adaptation == pytest.approx(new.seconds - base.seconds)
    assert new.images == sum(one.images for one in cost.values())
    scored, probes = (json.loads((run.folder / "evaluation" / f"target{kind}.json").read_text())
                      for kind in ("", "-probes"))
    assert new.scores == scored["rows"]["EmbAE-new"]
    assert new.probes == probes["EmbAE-new"] and new.probes["moved"] > 0
    control = results(runs[2])[1]
    assert control.row == "BN per camera" and not control.trained and control.images == cost["embedding"].images + 141
    assert results(runs[1])[0].scores == base.scores  # the same model


# In this process


def _console(act: Callable[[], object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as console:
        act()
    return console.getvalue()


def _inodes(run: Path) -> dict[str, tuple[int, int]]:
    files = {name: (run / name / EXPORT / "model.safetensors").stat() for name in ("embedding", "calibrate")}
    return {name: (file.st_ino, file.st_mtime_ns) for name, file in files.items()}


@on_ranks(1)
def again_and_again(world: World, folder: Path) -> dict[str, Any]:
    """A comparison of one recipe; the same again, on other data, on that again, anew, anew again, and shared again."""
    from embae.trainer.comparison.train import train_all

    shards, own, out = noise_datasets.shared_shards(world, folder), folder / "compared", folder / "comparison"
    own.mkdir()
    for name in ("one", "two", "target"):
        (own / name).symlink_to(shards / "labelled" / name)
    made, found = noise_datasets.settings(folder, own), {}

    def turn(name: str, *, fresh: bool = False, seeds: int = 1, **keys: Any) -> None:
        runs = plan(["bn-camera"], keys.get("overrides", []), [made], seeds, out)
        prepare(runs, 1)
        said = _console(lambda: train_all(runs, out, world, StopSignals(), fresh=fresh))
        run = runs[-1].folder
        links = [(run / name).is_symlink() for name in ("embedding", "calibrate", "cache")]
        found[name] = {"said": said, "files": _inodes(run), "row": results(runs[-1])[1].scores["mAP"], "links": links}

    turn("first")
    turn("again")
    turn("logged", overrides=["scoring.batch=32"])
    (own / "target").unlink()
    (own / "target").symlink_to(shards / "fewer" / "target")
    turn("other data")
    (own / "target").unlink()
    (own / "target").symlink_to(shards / "labelled" / "target")
    turn("back")
    turn("fresh", fresh=True)
    turn("fresh again", fresh=True)
    turn("shared again")
    turn("another seed", seeds=2)
    return found


@pytest.fixture(scope="module")
def turns(computed: Callable[..., Any]) -> dict[str, Any]:
    return computed(again_and_again, 1)[0]


def _done_before(turn: dict[str, Any]) -> list[str]:
    return re.findall(r"^\[(\S+)\] done before", turn["said"], re.MULTILINE)


@pytest.mark.parametrize("name", ["again", "logged", "back"])
def test_what_is_done_is_not_done_again(turns: dict[str, Any], name: str) -> None:
    assert _done_before(turns["first"]) == []
    assert _done_before(turns[name]) == ["embedding", "calibrate"]
    assert turns[name]["files"] == turns["first"]["files"]
    assert turns[name]["row"] == turns["first"]["row"] and turns[name]["links"] == [True, True, True]


def test_what_a_run_trained_for_itself_it_keeps(turns: dict[str, Any]) -> None:
    assert _done_before(turns["shared again"]) == ["embedding", "calibrate"]
    assert turns["shared again"]["files"] == turns["fresh again"]["files"] != turns["first"]["files"]
    assert turns["shared again"]["links"] == [False, False, False]


def test_other_data_is_calibrated_on_anew(turns: dict[str, Any]) -> None:
    assert _done_before(turns["other data"]) == ["embedding"]
    first, other = turns["first"]["files"], turns["other data"]["files"]
    assert other["embedding"] == first["embedding"] and other["calibrate"] != first["calibrate"]


def test_fresh_shares_nothing_with_what_was_there(turns: dict[str, Any]) -> None:
    fresh = turns["fresh"]
    assert _done_before(fresh) == [] and fresh["links"] == [False, False, False]
    assert all(fresh["files"][name] != turns["first"]["files"][name] for name in fresh["files"])
    assert fresh["row"] == turns["first"]["row"]  # the same computation
    assert turns["fresh again"]["files"] == fresh["files"]  # goes on with what is done


def test_another_seed_is_another_run(turns: dict[str, Any]) -> None:
    assert _done_before(turns["another seed"]) == ["embedding", "calibrate"]  # of seed 0 alone
    assert turns["another seed"]["files"] != turns["first"]["files"]


# What is refused


def refused(recipes: list[str], settings: list[str], *, seeds: int = 1, out: Path = Path("out"), **keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        prepare(plan(recipes, keys.get("overrides", []), settings, seeds, out), 1)
    assert not out.exists()  # nothing started
    return str(caught.value)


def own(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_what_does_not_go_together_is_refused(root: Path, tmp_path: Path) -> None:
    made, out = [noise_datasets.settings(tmp_path, root / "labelled")], tmp_path / "out"

    def with_other(text: str) -> str:
        settled = f"extends: baseline\nsettings: {Path(made[0]).name}\nname: other\n"
        path = own(tmp_path, "other", settled + text)
        first = own(tmp_path, "first", f"extends: baseline\nsettings: {Path(made[0]).name}\n")
        return refused([first, path], [], out=out)

    assert with_other("data: {target: two}\n") == (
        "other: data.target is two, of baseline target; compare on one target and one set of sources")
    assert with_other("data: {sources: [one]}\n") == (
        "other: data.sources is ['one'], of baseline ['one', 'two']; compare on one target and one set of sources")
    assert with_other("scoring: {tta: flip}\n") == (
        "other: scoring.tta is flip, of baseline none; compare recipes with the same scoring")
    assert with_other("scoring: {rerank: true}\n") == (
        "other: scoring.rerank is True, of baseline False; compare recipes with the same scoring")
    assert with_other("scoring: {expand: 2}\n") == (
        "other: scoring.expand is 2, of baseline 0; compare recipes with the same scoring")
    assert with_other("evaluate: null\n") == "other: evaluate names no row; a comparison needs at least one"
    assert (
        refused(["baseline", "baseline"], made, out=out)
        == "two recipes have the name baseline; give them different names"
    )
    twin = own(tmp_path, "twin", "extends: bn-camera\nname: baseline\n")
    assert refused(["baseline", twin], made, seeds=3, out=out).startswith("two recipes have the name baseline")
    assert "did you mean baseline" in refused(["baselin"], made, out=out)
    assert "data.root=" not in refused(["baseline"], made, out=out, overrides=["sed=1"])


def test_a_target_without_labelled_queries_is_refused(root: Path, tmp_path: Path) -> None:
    made, out = [noise_datasets.settings(tmp_path, root / "labelled")], tmp_path / "out"
    said = refused(["baseline"], made, out=out, overrides=["data.target=two", "data.sources=[one]"])
    assert said.startswith(f"{root / 'labelled' / 'two'}: has nothing to score")


def test_a_folder_of_another_comparison_is_refused(desk: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = desk
    made = str(next(folder.glob("small-*.yaml")))
    changes = ["stages.embedding.log_every=1", "stages.autoencoder.epochs=2"]
    runs = plan(["embae-new"], changes, [made], 1, folder / "cmp")
    with pytest.raises(RecipeError, match=r"stages\.autoencoder\.epochs: 1\.0 in the folder, 2\.0 now"):
        prepare(runs, 1)


def test_without_names_all_shipped_recipes_are_compared(root: Path, tmp_path: Path) -> None:
    runs = plan([], [], [noise_datasets.settings(tmp_path, root / "labelled")], 2, tmp_path / "out")
    names = [run.recipe.name for run in runs]
    assert len(names) == 2 * len(set(names)) and {"baseline", "embae-cam", "pul", "aae"} <= set(names)
    assert "quickstart" not in names
    assert [run.recipe.seed for run in runs] == [0] * len(set(names)) + [1] * len(set(names))
    assert runs[0].folder == tmp_path / "out" / "runs" / f"{names[0]}-0"
