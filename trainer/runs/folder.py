"""The folder of a run: its resolved recipe, its lock, and which stages are done.

    runs/<recipe>/recipe.yaml      as resolved; versions, git commit and world size in its first lines
    runs/<recipe>/metrics.jsonl    one JSON object a line
    runs/<recipe>/tensorboard/
    runs/<recipe>/<stage>/         see `stage_folder.py` and `checkpoint.py`
    runs/<recipe>/resumed          the checkpoint that --resume asked for, once it is the newest of its stage
    runs/<recipe>/stopped, failed  how it ended, if not well; see `stopping.py`
    runs/<recipe>/evaluation/<dataset>.json
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import write_text
from embae.datasets.index.card import CARD, MERGED
from embae.datasets.remote.url import Url
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import dump, load
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import LENGTHS
from embae.trainer.runs.stage_folder import done, is_done

_TOLD = 8  # keys that differ named in one message


def check_same(run: Path, recipe: Recipe) -> None:
    """Checks that a run folder was made by the same recipe.

    Evaluation, checkpoints, the time-out, where far data is copied to and the length of unfinished stages may differ.

    Raises:
        RecipeError: Naming the keys that differ, or the file that is damaged.
    """
    path = run / "recipe.yaml"
    if not path.exists():
        return
    before, now = (_flat(one.model_dump(mode="json", by_alias=True)) for one in (load(str(path)), recipe))
    free = ["evaluate", "scoring", "checkpoints", "timeout", "data.cache"]
    free += [f"stages.{stage}.evaluate_every" for stage in recipe.run]
    unfinished = [stage for stage in recipe.run if not is_done(run, stage)]
    for stage in recipe.run:
        if stage not in unfinished:
            done(run, stage)  # a damaged mark is told before anything starts
    free += [f"stages.{stage}.{key}" for stage in unfinished for key in LENGTHS]
    differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
              and not any(key == name or key.startswith(name + ".") for name in free)]
    if differ:
        # Stages that only one of them has are told by `run`.
        apart = {key for key in differ if len(parts := key.split(".")) > 2 and not all(
            any(one.startswith(f"stages.{parts[1]}.") for one in tree) for tree in (before, now))}
        told = [key for key in differ if key not in apart]
        count = f"{len(told)} keys differ" if len(told) > 1 else "one key differs"
        changes = [f"  {key}: {_short(before, key)} in the folder, {_short(now, key)} now" for key in told[:_TOLD]]
        changes += [f"  and {len(told) - _TOLD} more"] * (len(told) > _TOLD)
        raise RecipeError("\n".join([f"{run}: holds a run of another recipe; {count}", *changes,
                                     f"To go on with what the folder holds: embae train {path} --out {run}",
                                     "Otherwise take another folder with --out, or undo the change (docs/clusters.md)."]
                                    ))


def _short(tree: dict[str, Any], key: str) -> str:
    """A value for a message."""
    text = str(tree.get(key, "not there"))
    return text if len(text) <= 80 else f"{text[:77]}…"


def write_recipe(run: Path, recipe: Recipe, world_size: int) -> None:
    """Writes the resolved recipe, under lines that say what it ran with."""
    run.mkdir(parents=True, exist_ok=True)
    packages = ", ".join(f"{name} {_version(name)}" for name in
                         ("embae", "torch", "deepspeed", "timm", "webdataset", "nvidia-dali-cuda130"))
    head = f"# {packages}\n# git commit {_commit()}, world size {world_size}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n"
    write_text(run / "recipe.yaml", head + dump(recipe))


def lock(run: Path, wait_s: float = 15) -> IO[str]:
    """Holds the run folder until the returned file is closed or the process ends.

    Workers of a killed launcher end a moment after it, so a new start waits briefly for them.

    Raises:
        RecipeError: Another run holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = (run / ".lock").open("a+")
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                file.close()
                raise RecipeError(f"{run}: {holder} is running in this folder; wait for it to end, or take another "
                                  "folder with --out") from None
            if not told:
                note(f"{run}: waiting for {holder} to end, {wait_s:.0f} s at most")
                told = True
            time.sleep(0.1)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {path: value for key, below in tree.items()
                for path, value in _flat(below, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: tree}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def recipe_of(run: Path) -> Recipe:
    """The resolved recipe of a run folder.

    A relative ``data.root`` means the folder that ``embae train`` was started in. Where none of the run's datasets is
    below it as seen from here, they are looked for from the folders above the run.

    Raises:
        RecipeError: ``recipe.yaml`` is damaged.
    """
    recipe = load(str(run / "recipe.yaml"))
    root, names = recipe.data.root, [recipe.data.target, *recipe.data.sources]
    if isinstance(root, Url) or root.is_absolute() or _holds(root, names):
        return recipe
    for folder in run.resolve().parents:
        if _holds(folder / root, names):
            note(f"data.root {root} is none of this folder; read from {folder / root}, beside the run")
            return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": folder / root})})
    return recipe


def _holds(root: Path, names: list[str]) -> bool:
    return any((root / name / card).is_file() for name in names for card in (CARD, MERGED))
