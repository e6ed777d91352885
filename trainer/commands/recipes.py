"""``embae recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.console.tables import format_table
from embae.trainer.commands.options import Overrides, RecipeName, Settings

recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")


@recipes.command("list")
def recipes_list() -> None:
    """List the shipped recipes and settings, each with its first line.

    Example: embae recipes list
    """
    from embae.trainer.recipe.shipped import SETTINGS, read_text, shipped_names
    for heading, folder in (("recipe", ""), (f"--{SETTINGS}", SETTINGS)):
        rows = [[name, read_text(name, folder)[0].splitlines()[0].removeprefix("# ")] for name in shipped_names(folder)]
        print(format_table([heading, ""], rows, left=[heading, ""]), end="\n\n" if not folder else "\n")


@recipes.command("show")
def recipes_show(recipe: RecipeName) -> None:
    """Print a recipe as its author wrote it.

    Example: embae recipes show embae-cam
    """
    from embae.trainer.recipe.shipped import read_text
    print(read_text(recipe)[0], end="")


@recipes.command("check")
def recipes_check(
    recipe: RecipeName,
    overrides: Overrides = None,
    settings: Settings = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print it with all defaults and overrides.")] = False,
) -> None:
    """Check the keys of a recipe.

    Its data are checked by embae train, before anything starts.

    Example: embae recipes check embae-cam data.root=/data/shards
    """
    from embae.trainer.recipe.load import dump_recipe, load_recipe
    checked = load_recipe(recipe, overrides or [], settings or [])
    print(dump_recipe(checked) if resolved else f"{checked.name}: valid; stages {', '.join(checked.run)}")


@recipes.command("schema")
def recipes_schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file instead of printing.")] = None,
) -> None:
    """Print the JSON schema of recipes, so that editors complete and check keys.

    Example: embae recipes schema --out recipe.schema.json
    """
    from embae.datasets.files.json_files import format_json, write_json
    from embae.trainer.recipe.json_schema import recipe_schema
    schema = recipe_schema()
    if out is None:
        print(format_json(schema, ascii_only=False))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, schema, ascii_only=False)
