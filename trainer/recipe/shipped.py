"""The recipes and settings that are shipped with embae, and the text of a recipe by name or by file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from embae.datasets.errors import did_you_mean
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.trainer.errors import RecipeError

SETTINGS = "settings"
"""The key and the folder of settings: the keys of a recipe that depend on data and machine, in a file of their own.

Settings go with many recipes. Under ``stages`` they may name the stages of any shipped recipe; a recipe takes the keys
of the stages that it has.
"""


def shipped_names(folder: str = "") -> list[str]:
    """Names of the shipped recipes, or of the shipped files in a folder of them, such as `SETTINGS`."""
    files = [entry.name for entry in (resources.files("embae.recipes") / folder).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def read_text(recipe: str, folder: str = "") -> tuple[str, str]:
    """Text of a recipe and the name for it in messages.

    Args:
        recipe: A file, or the bare name of a shipped recipe.
        folder: Of shipped files, as in `shipped_names`.

    Raises:
        RecipeError: There is no such file and no such shipped recipe.
    """
    path, kind = Path(recipe), folder or "recipe"
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
        try:
            return read_bytes(path, MOST).decode(), str(path)
        except (OSError, ValueError) as error:  # a ValueError: not UTF-8, or a name that no file can have
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from error
    names = shipped_names(folder)
    if recipe in names:
        return (resources.files("embae.recipes") / folder / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    raise RecipeError(f"{recipe}: no such file, and no {kind} of that name is shipped"
                      f"{did_you_mean(recipe, names)} (shipped: {', '.join(names)})")
