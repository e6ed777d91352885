"""What README.md and the notes in docs/ tell a person to type: every command of theirs works.

Commands are run in their order, in a folder that has tiny invented data under the names that the notes use. A block of
YAML whose comment says ``# file: NAME`` is written there, to be used by the commands after it. What would take a
cluster, an official dataset or hours is parsed, with its recipe, keys, settings and sources.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from embae.datasets.readers.options import convert_options
from embae.datasets.readers.registry import READERS
from embae.trainer.commands.app import app
from embae.trainer.comparison.compare import plan
from embae.trainer.recipe.json_schema import recipe_schema
from embae.trainer.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OTHERS = {"python3", "python", "pip", "pytest", "ruff", "apt-get", "sbatch", "cd", "export", "git", "tensorboard"}
OFFICIAL = {*READERS} - {"folder", "csv", "synthetic"}


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, its first line in the page, and its text."""

    language: str
    line: int
    text: str


def blocks(page: str) -> Iterator[Block]:
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M):
        yield Block(found[1], page[:found.start()].count("\n") + 2, found[2])


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command; those that are joined by && one by one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def words_of_embae(words: list[str]) -> list[str] | None:
    """What embae is given; None where another program is started."""
    if Path(words[0]).name == "embae":
        return words[1:]
    if "embae.trainer" in words and Path(words[0]).name in ("torchrun", "python", "python3"):
        return ["train", *words[words.index("embae.trainer") + 1:]]
    assert Path(words[0]).name in OTHERS, f"{words[0]}: no program that is known here"
    return None


def parsed(words: list[str]) -> click.Context:
    """The context of the command that is meant, its options read; a mistake is typer's error."""
    context, command = click.Context(typer.main.get_command(app)), typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{name}: no such command"
        command = command.commands[name]
        if not hasattr(command, "commands"):
            context = command.make_context(name, list(words))
    assert context.command is command, "names no command"
    return context


def checked(words: list[str]) -> click.Context:
    """As `parsed`, with what stands in the words: recipe, keys and settings, a source and its options."""
    context = parsed(words)
    name, given = context.info_name, context.params
    if name in ("train", "bench", "check") or (name == "slurm" and given["recipe"] != "shard"):
        load_recipe(given["recipe"], given.get("overrides", given.get("words")) or [], given["settings"] or [])
    elif name == "adapt":
        load_recipe("adapt-source-free", given["overrides"] or [])
    elif name == "compare":
        every = given["words"] or []
        plan([one for one in every if "=" not in one], [one for one in every if "=" in one], given["settings"] or [],
             given["seeds"], Path("runs/comparison"))
    elif name == "slurm":
        checked(["shard", *given["words"]])
    elif name == "shard":
        options = dict(word.split("=", 1) for word in given["options"] or [])
        convert_options(given["source"], READERS[given["source"]].list_records, options)
    return context


def runnable(context: click.Context, words: list[str]) -> list[str] | None:
    """The words as they are run here; None for what takes a cluster, official data or long."""
    name, given = context.info_name, context.params
    if name in ("compare", "adapt", "bench") or (name == "shard" and given["source"] in (*OFFICIAL, "synthetic")):
        return None
    if name == "train":
        if not given["dry_run"]:
            return None
        words = [*words, "--settings", "tiny.yaml", "--world-size", "2"]  # the last one counts
    if name == "export":
        words = [*words, "--format", "safetensors"]  # the fastest
    kept = [word for word in words if word != "--submit"]
    if "--nproc" in kept:
        at = kept.index("--nproc")
        kept[at:at + 2] = []
    return kept


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets and runs under the names that the pages use, all of them tiny; /data is a folder of it."""
    from helpers import noise_datasets, tiny_run
    from helpers.exported_model import export

    from embae.datasets.loading.image_spec import ImageSpec
    from embae.datasets.sharding.options import ShardOptions
    from embae.datasets.sharding.write_shards import write_shards

    folder = tmp_path_factory.mktemp("docs")
    scored = [*noise_datasets.records(700, 3, 2, 2, "query"), *noise_datasets.records(800, 3, 4, 2, "gallery")]
    for number, name in enumerate(("market1501", "dukemtmc", "msmt17")):
        images = [*noise_datasets.records(1000 * number, 8, 4, 2), *scored]
        write_shards(
            name,
            images,
            folder / "shards",
            source={"reader": "test"},
            options=ShardOptions(workers=1),
            progress=noise_datasets.silent,
        )
    for camera in range(4):
        for number in range(64):
            image = noise_datasets.Drawn(number, camera).read()
            places = [f"footage/cam{camera + 1}/{number:03d}.jpg"]
            places += [f"people/{number:04d}/cam{camera + 1}.jpg"] if number < 8 else []
            for place in places:
                path = folder / "data" / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)
    (folder / "data" / "shards").symlink_to(folder / "shards")
    (folder / "footage" / "station").mkdir(parents=True)
    for number, camera in enumerate(("door", "hall", "stairs", "yard"), 1):
        (folder / "footage" / "station" / camera).symlink_to(folder / "data" / "footage" / f"cam{number}")
    (folder / "door.jpg").write_bytes(noise_datasets.Drawn(1, 0).read())
    for name in ("a/0001.jpg", "b/0002.jpg"):
        path = folder / "data" / "listed" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(noise_datasets.Drawn(len(name), 1).read())
    (folder / "data" / "listed" / "images.csv").write_text(
        "path,pid,camid,split,role\na/0001.jpg,anna,door,query,person\nb/0002.jpg,anna,hall,gallery,person\n")
    settings = Path(noise_datasets.settings(folder, folder / "shards"))
    tree = yaml.safe_load(settings.read_text())
    tree["data"] = {"image": [32, 16], "loader": "webdataset", "threads": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"data": {"sources": ["dukemtmc"], "target": "market1501"}}))
    words = ["train", "baseline", "data.root=shards", "--settings", "tiny.yaml"]
    done = tiny_run.embae(*words, "data.sources=[dukemtmc]", "--out", "runs/embae-cam", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in ("baseline", "strong-baseline", "adapt-station"):
        (folder / "runs" / name).symlink_to(folder / "runs" / "embae-cam")
    export(folder / "runs" / "pretrain-merged" / "merged", ImageSpec(32, 16))
    return folder


def mistakes(page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is wrong with the commands of a page, each with its line."""
    monkeypatch.chdir(workspace)
    schema, wrong = Draft202012Validator(recipe_schema()), []
    for block in blocks(page.replace("/data/", f"{workspace}/data/")):
        if block.language == "yaml":
            wrong += [f"{block.line}: {error.message}" for error in schema.iter_errors(yaml.safe_load(block.text))]
            if name := re.search(r"^# file: (\S+)$", block.text, re.M):
                Path(name[1]).write_text(block.text)
        for words in commands(block) if block.language == "sh" else ():
            try:
                mine = words_of_embae(words)
                if mine is None or mine == ["--install-completion"]:
                    continue
                run = runnable(checked(mine), mine)
                if run:
                    done = CliRunner().invoke(app, run)
                    if done.exception and not (isinstance(done.exception, SystemExit) and done.exit_code == 0):
                        raise done.exception
            except (Exception, SystemExit) as error:
                said = error.format_message() if isinstance(error, click.ClickException) else str(error)
                wrong.append(f"{block.line}: {shlex.join(words)}: {type(error).__name__}: {said}")
    return wrong


@pytest.mark.ranks
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_works(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not mistakes(page.read_text(encoding="utf-8"), workspace, monkeypatch)


@pytest.mark.parametrize("line, said", [
    ("embae trane embae-cam", "no such command"),
    ("embae train embae-cam --nprocs 8", "--nprocs"),
    ("embae train embae-kam", "did you mean embae-cam"),
    ("embae train embae-cam stages.embeding.epochs=1", "did you mean embedding"),
    ("embae slurm embae-cam model.bakbone=x --submit", "did you mean backbone"),
    ("embae slurm shard -- market1502 --root /data/x", "market1502"),
    ("embae shard folder patern=x --root /data/footage", "did you mean pattern"),
    ("embae inspect shards/nothing", "no such dataset"),
    ("python3 -m venv .venv && .venv/bin/embae recipes lst", "no such command"),
    ("torchrun --nnodes 4 -m embae.trainer embae-cam --sed 1", "--sed"),
    ("embea train embae-cam", "no program that is known"),
])
def test_a_mistake_in_a_page_is_found(line: str, said: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = mistakes(f"text\n\n```sh\n{line}\n```\n", workspace, monkeypatch)
    assert found.startswith("4: ") and said in found


def test_every_help_text_has_an_example_that_parses() -> None:
    def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{path} {name}")
        if not hasattr(command, "commands"):
            yield path, command

    found = list(walk(typer.main.get_command(app), "embae"))
    assert len(found) > 15
    for path, command in found:
        example = re.search(r"^ *Example: (.*)$", command.help or "", re.M)
        assert example and f"{example[1]} ".startswith(f"{path} "), path
        parsed(shlex.split(example[1])[1:])
