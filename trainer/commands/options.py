"""What the commands that start ranks share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embae.trainer.errors import RecipeError
from embae.trainer.retrieval.ranking_options import MOST

if TYPE_CHECKING:
    pass


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that begin so, for the shell's completion; where there are none, shells complete files."""
    from embae.trainer.recipe.shipped import shipped_names
    return [name for name in shipped_names() if name.startswith(incomplete)]


def settings_names(incomplete: str) -> list[str]:
    """The same of shipped settings."""
    from embae.trainer.recipe.shipped import SETTINGS, shipped_names
    return [name for name in shipped_names(SETTINGS) if name.startswith(incomplete)]


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


def check_writable(option: str, path: Path) -> None:
    """Checks, before anything takes time, that a file or folder can be made.

    Raises:
        RecipeError: Where it would lie may not be written to.
    """
    inside = path.absolute()
    folder = next(one for one in (inside, *inside.parents) if os.path.isdir(one))
    if not os.access(folder, os.W_OK):
        raise RecipeError(f"{option} {path}: may not be written to ({folder}); give another place with {option}")


Pattern = Annotated[str | None, typer.Option(metavar="REGEX", help=(
    "For a folder: what stands for pid and camid in the paths, as for embae shard folder; by default the first "
    "sub-folder is the camera."))]


Name = Annotated[str | None, typer.Option(help=(
    "Of the dataset that a folder of images becomes; by default the folder's own. A model knows its cameras by it."))]


SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")]


Stage = Annotated[str | None, typer.Option(help="Of a run: whose model; by default the last row of its table.")]


ENOUGH = 32
"""Images of a camera. Rank-1 on the drawn campus: 0.31 as the model is, 0.36 with 8 images a camera, 0.44 with 16, 0.46
with 32, 0.55 with all 402 to 450; with ``--features`` 0.36 as it is, then 0.40, 0.44,
0.46 and 0.55."""
