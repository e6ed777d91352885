"""What the commands that start ranks share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.errors import RecipeError
from embae.trainer.refined import MOST


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that begin so, for the shell's completion; where there are none, shells complete files."""
    from embae.trainer.recipe import names
    return [name for name in names() if name.startswith(incomplete)]


def settings_names(incomplete: str) -> list[str]:
    """The same of shipped settings."""
    from embae.trainer.recipe import SETTINGS, names
    return [name for name in names(SETTINGS) if name.startswith(incomplete)]


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help=(
    "A shipped recipe's name, or a YAML file."))]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help=(
    "Keys of the recipe to set, such as data.root=/data/shards."))]
Settings = Annotated[list[str] | None, typer.Option(
    "--settings", metavar="NAME|FILE", autocompletion=settings_names, help=(
    "Settings to go with the recipe, such as quick; may be given several times."))]
Rerank = Annotated[bool | None, typer.Option("--rerank/--no-rerank", show_default=False, help=(
    "Rank by k-reciprocal re-ranking; by default as the recipe says."))]
Expand = Annotated[int | None, typer.Option(min=0, max=MOST, metavar="N", show_default=False, help=(
    "Rank by the mean of each query and its N nearest images; by default as the recipe says."))]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def ranks_here(nproc: int | None) -> int:
    """Ranks to start on this machine: as many as asked for, or one a GPU, or one.

    Raises:
        RecipeError: More than there are GPUs.
    """
    there = gpus()
    ranks = nproc or there or 1
    if there and ranks > there:
        raise RecipeError(f"--nproc {ranks}: a rank needs a GPU of its own, and there are {there}")
    return ranks


def gpus() -> int:
    """GPUs that a run may use, asked of the driver's files: importing torch would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev"))


def check_writable(option: str, path: Path) -> None:
    """Checks, before anything takes time, that a file or folder can be made.

    Raises:
        RecipeError: Where it would lie may not be written to.
    """
    inside = path.absolute()
    folder = next(one for one in (inside, *inside.parents) if os.path.isdir(one))
    if not os.access(folder, os.W_OK):
        raise RecipeError(f"{option} {path}: may not be written to ({folder}); give another place with {option}")
