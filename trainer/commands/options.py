"""Arguments and options that several commands have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.scoring import TTA
from embae.trainer.retrieval.ranking_options import MOST


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that begin with a text, for shell completion; without any, shells complete file names."""
    from embae.trainer.recipe.shipped import shipped_names
    return [name for name in shipped_names() if name.startswith(incomplete)]


def settings_names(incomplete: str) -> list[str]:
    """Shipped settings that begin with a text, for shell completion."""
    from embae.trainer.recipe.shipped import SETTINGS, shipped_names
    return [name for name in shipped_names(SETTINGS) if name.startswith(incomplete)]


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", autocompletion=recipe_names, help=(
    "The name of a shipped recipe, or a YAML file."))]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help=(
    "Keys of the recipe to set, such as data.root=/data/shards."))]
Settings = Annotated[list[str] | None, typer.Option(
    "--settings", metavar="NAME|FILE", autocompletion=settings_names, help=(
    "Settings to combine with the recipe, such as quick. Repeatable."))]
ModelPath = Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")]
Stage = Annotated[str | None, typer.Option(help=(
    "The stage of the run that has the model. Default: the stage of the last row of its score table."))]
Nproc = Annotated[int | None, typer.Option(min=1, help="Ranks on this machine. Default: one per GPU, or one.")]
Tta = Annotated[TTA | None, typer.Option(help="Test-time augmentation. Default: as in the recipe.")]
Rerank = Annotated[bool | None, typer.Option("--rerank/--no-rerank", show_default=False, help=(
    "Rank by k-reciprocal re-ranking. Default: as in the recipe."))]
Expand = Annotated[int | None, typer.Option(min=0, max=MOST, metavar="N", show_default=False, help=(
    "Rank by the mean of each query and its N nearest images. Default: as in the recipe."))]
Name = Annotated[str | None, typer.Option(help=(
    "For a folder of images: the name of its dataset, by which models know its cameras. Default: the folder's name."))]
Pattern = Annotated[str | None, typer.Option(metavar="REGEX", help=(
    "For a folder of images: matches its paths, with the groups pid and camid, as for embae shard folder. Default: the "
    "first sub-folder is the camera."))]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help=(
    "Also write the result to this file as JSON."))]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]

ENOUGH = 32
"""Images of a camera that calibration needs. Rank-1 on the synthetic campus is 0.31 without calibration, 0.36 with 8
images of each camera, 0.44 with 16, 0.46 with 32, and 0.55 with all 402 to 450. With ``--features`` it is 0.36 without
calibration, then 0.40, 0.44, 0.46 and 0.55."""


def check_writable(option: str, path: Path) -> None:
    """Checks, before anything that takes time, that a file or folder can be created.

    Raises:
        RecipeError: Its parent folder cannot be written to.
    """
    absolute = path.absolute()
    folder = next(parent for parent in (absolute, *absolute.parents) if os.path.isdir(parent))
    if not os.access(folder, os.W_OK):
        raise RecipeError(f"{option} {path}: the folder {folder} cannot be written to; choose another with {option}")
