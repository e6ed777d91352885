"""The recipe of a run folder, as resolved when the run started.

    runs/<recipe>/recipe.yaml      as resolved; versions, git commit and world size in its first lines
    runs/<recipe>/metrics.jsonl    one JSON object a line
    runs/<recipe>/tensorboard/
    runs/<recipe>/<stage>/         see `stage_folder.py` and `checkpoint.py`
    runs/<recipe>/resumed          the checkpoint that --resume named, once it is the newest of its stage
    runs/<recipe>/stopped, failed  how the run ended, if it did not finish; see `runtime/signals.py`
    runs/<recipe>/evaluation/<dataset>.json
"""

from __future__ import annotations

import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import write_text
from embae.datasets.index.card import CARD, MERGED
from embae.datasets.remote.url import Url
from embae.trainer.recipe.load import dump_recipe, load_recipe
from embae.trainer.recipe.schema import Recipe

_PACKAGES = ("embae", "torch", "deepspeed", "timm", "webdataset", "nvidia-dali-cuda130")


def write_recipe(run: Path, recipe: Recipe, world_size: int) -> None:
    """Writes the resolved recipe, below two comment lines with versions, git commit, world size and date."""
    run.mkdir(parents=True, exist_ok=True)
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    head = f"# {packages}\n# git commit {_commit()}, world size {world_size}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n"
    write_text(run / "recipe.yaml", head + dump_recipe(recipe))


def read_recipe(run: Path) -> Recipe:
    """Reads the resolved recipe of a run folder.

    A relative ``data.root`` is relative to the folder that ``embae train`` was started in. If none of the run's
    datasets is below it when seen from here, they are searched from the folders above the run.

    Raises:
        RecipeError: ``recipe.yaml`` is damaged.
    """
    recipe = load_recipe(str(run / "recipe.yaml"))
    root, names = recipe.data.root, [recipe.data.target, *recipe.data.sources]
    if isinstance(root, Url) or root.is_absolute() or _has_dataset(root, names):
        return recipe
    for folder in run.resolve().parents:
        if _has_dataset(folder / root, names):
            note(f"data.root {root} has no dataset of this run when seen from here; reading from {folder / root}, "
                 "found from the run folder")
            return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": folder / root})})
    return recipe


def _has_dataset(root: Path, names: list[str]) -> bool:
    return any((root / name / card).is_file() for name in names for card in (CARD, MERGED))


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
