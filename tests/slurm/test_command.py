"""`embae slurm` as a user meets it: what it prints, and what it refuses before anything is printed or sent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from helpers import tiny_run

from embae.slurm.script import fill_script
from embae.trainer.errors import RecipeError


def shipped(name: str) -> str:
    return (resources.files("embae.slurm") / f"{name}.sbatch").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_run.write(tmp_path, tiny_run.tree())
    return tmp_path


def options(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))


def printed(*arguments: object, cwd: Path) -> str:
    done = tiny_run.embae("slurm", *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, capture_output=True).stderr == ""
    return done.stdout


def told(script: str, *arguments: str) -> tuple[dict[bytes, bytes], list[bytes]]:
    """What bash makes of the lines that were put in: variables, and the words that the ranks will get."""
    start, end = script.index("\nset -u\n"), script.index("\npython=${EMBAE_PYTHON")
    lines = script[start:end] + "\nexport ${!EMBAE_@}; env -0; printf '%s\\0' -- \"$@\""
    out = subprocess.run(["bash", "-c", os.fsencode(lines), "job", *arguments], capture_output=True, check=True).stdout
    env, words = out.rsplit(b"\0--\0", 1)
    return dict(one.split(b"=", 1) for one in env.split(b"\0")), words.split(b"\0")[:-1]


def test_the_script_is_the_shipped_one_but_for_what_it_was_told(folder: Path) -> None:
    script = printed("tiny.yaml", "--nodes", 3, "--gpus-per-node", 8, "--time", "4:00:00", "--partition", "a,b",
                     "--warn", 300, "--sbatch", "account=vision", "--sbatch", "--exclusive", cwd=folder)
    assert options(script) == {
        "job-name": "tiny", "nodes": "3", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "4:00:00",
        "partition": "a,b", "output": "%x-%j.log", "open-mode": "append", "requeue": "", "signal": "B:USR1@300",
        "account": "vision", "exclusive": ""}
    lines = script.splitlines()
    ours = [line for line in shipped("train").splitlines() if not line.startswith("#SBATCH")]
    extra = [line for line in lines if not line.startswith("#SBATCH") and line not in ours]
    assert extra == [f"EMBAE_PYTHON={sys.executable}", "EMBAE_MAX_RESTARTS=20", "EMBAE_OUT=runs/tiny",
                     "EMBAE_DIRECT=''", 'set -- tiny.yaml "$@"']
    assert [line for line in lines if line in ours] == [line for line in ours if not line.startswith("# embae slurm:")]


def test_seeds_are_an_array(folder: Path) -> None:
    assert options(printed("tiny.yaml", "--seeds", 3, "--ranks-per-node", 2, "--direct", cwd=folder)).items() >= {
        ("array", "0-2"), ("output", "%x-%A_%a.log"), ("ntasks-per-node", "2")}


ODD = ["plain", "it's", 'a "b" $HOME `id` \\ !x', "two\nlines", "-n", "*", "", "#", "ünïcode", "tab\t"]


def test_whatever_is_reported_reaches_the_ranks_as_it_is(tmp_path: Path) -> None:
    odd = [*ODD, os.fsdecode(b"not \xff utf-8")]
    for value in odd:
        variables, words = told(fill_script("train", {}, {"EMBAE_OUT": value}, ["recipe", value, *odd]), "later", value)
        assert variables[b"EMBAE_OUT"] == os.fsencode(value)
        assert words == [os.fsencode(word) for word in ("recipe", value, *odd, "later", value)]


@pytest.mark.parametrize("value", ["a\nb", "a b", "a'b", 'a"b', "a\\b", "a#b", "ä", "a\x00b", "a\x7fb", "a\rb"])
def test_sbatch_lines_hold_no_more_than_they_can(value: str) -> None:
    with pytest.raises(RecipeError, match="cannot contain"):
        fill_script("train", {"account": value}, {}, [])
    with pytest.raises(RecipeError, match="not an option"):
        fill_script("train", {value: "x"}, {}, [])


@pytest.mark.parametrize(("arguments", "said"), [
    (["tyni.yaml"], "tyni.yaml: cannot be read"),
    (["tiny.yaml", "modle.backbone=x"], "modle: unknown key; did you mean model?"),
    (["tiny.yaml", "--settings", "quik"], "did you mean quick?"),
    (["tiny.yaml", "--partition", "a\nb"], "cannot contain"),
    (["tiny.yaml", "--gpus-per-node", 2, "--ranks-per-node", 2], "--ranks-per-node"),
    (["tiny.yaml", "--seeds", 2, "seed=3"], "seed: "),
    (["tiny.yaml", "--nodes", 0], "--nodes"),
    (["shard", "--nodes", 2, "--", "synthetic"], "--nodes: is for training"),
    (["tiny.yaml", "--array", 3], "--array: is for sharding"),
    (["shard", "--", "synthetic", "--rot", "x"], "No such option: --rot"),
], ids=str)
@pytest.mark.parametrize("submit", [[], ["--submit"]], ids=["print", "submit"])
def test_a_mistake_is_reported_before_anything_is_printed_or_sent(
    folder: Path, arguments: list[object], said: str, submit: list[str]
) -> None:
    done = tiny_run.embae("slurm", *submit, *arguments, cwd=folder, PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_without_slurm_nothing_is_sent(folder: Path) -> None:
    done = tiny_run.embae("slurm", "tiny.yaml", "--submit", cwd=folder, PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("embae: sbatch: not found")


def test_sharding_gets_what_stands_behind_the_dashes(folder: Path) -> None:
    script = printed("shard", "--partition", "io", "--", "folder", "pattern=cam(?P<camid>\\d+)/", "--root", "a b",
                     cwd=folder)
    assert options(script)["partition"] == "io"
    assert "\nset -- folder 'pattern=cam(?P<camid>\\d+)/' --root 'a b' \"$@\"\n" in script


def test_an_array_shards_together(folder: Path) -> None:
    assert options(printed("shard", "--array", 3, "--", "synthetic", cwd=folder)).items() >= {
        ("array", "0-2"), ("output", "%x-%A_%a.log")}
