"""Checks that a run folder belongs to the recipe that a new start has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import LENGTHS
from embae.trainer.runs.stage_folder import is_done, read_cost

_FREE = ("evaluate", "scoring", "checkpoints", "timeout", "data.cache")
"""Keys that may differ in any run: none changes what a stage computes."""
_SHOWN = 8  # different keys listed in one message


def check_same_recipe(run: Path, recipe: Recipe) -> None:
    """Checks that a run folder was started with the same recipe.

    Evaluation, checkpoints, the time-out, where remote data is cached and the length of unfinished stages may differ.

    Raises:
        RecipeError: Names the keys that differ, or the file that is damaged.
    """
    path = run / "recipe.yaml"
    if not path.exists():
        return
    before, now = (_flatten(each.model_dump(mode="json", by_alias=True)) for each in (load_recipe(str(path)), recipe))
    free = [*_FREE, *(f"stages.{stage}.evaluate_every" for stage in recipe.run)]
    for stage in recipe.run:
        if is_done(run, stage):
            read_cost(run, stage)  # raises where the mark is damaged, before anything starts
        else:
            free += [f"stages.{stage}.{key}" for key in LENGTHS]
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
                 and not any(key == name or key.startswith(name + ".") for name in free)]
    if different:
        raise RecipeError(_message(run, different, before, now))


def _message(run: Path, different: list[str], before: dict[str, Any], now: dict[str, Any]) -> str:
    listed = [key for key in different if not _in_added_stage(key, before, now)]
    count = f"{len(listed)} keys differ" if len(listed) > 1 else "one key differs"
    changes = [f"  {key}: {_short(before, key)} in the folder, {_short(now, key)} now" for key in listed[:_SHOWN]]
    changes += [f"  and {len(listed) - _SHOWN} more"] * (len(listed) > _SHOWN)
    return "\n".join([f"{run}: contains a run of another recipe; {count}", *changes,
                      f"To resume the run in the folder: embae train {run / 'recipe.yaml'} --out {run}",
                      "Otherwise choose another folder with --out, or undo the change (docs/clusters.md)."])


def _in_added_stage(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a key belongs to a stage that only one of the recipes has; the key ``run`` shows that difference."""
    parts = key.split(".")
    return len(parts) > 2 and not all(any(path.startswith(f"stages.{parts[1]}.") for path in tree)
                                      for tree in (before, now))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path → value."""
    if isinstance(tree, dict) and tree:
        return {path: value for key, below in tree.items()
                for path, value in _flatten(below, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: tree}


def _short(tree: dict[str, Any], key: str) -> str:
    """A value for a message, 80 characters at most."""
    text = str(tree.get(key, "not set"))
    return text if len(text) <= 80 else f"{text[:77]}…"
