"""The recipe of a run, read back: its data are found from whatever folder one asks."""

from __future__ import annotations

from pathlib import Path

from embae.datasets.card import CARD, MERGED
from embae.datasets.progress import note
from embae.datasets.remote import Url
from embae.trainer.recipe import load
from embae.trainer.schema import Recipe


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
