"""Recipes as plain trees, before they are checked: parsing, merging, and overrides from the command line."""

from __future__ import annotations

from typing import Any

from embae.datasets.errors import did_you_mean
from embae.datasets.files.yaml_files import parse_yaml
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.mistakes import show_value
from embae.trainer.recipe.stage import LENGTHS


def parse_tree(text: str, origin: str) -> dict[str, Any]:
    """Parses a YAML mapping safely.

    Raises:
        RecipeError: The text is not YAML, has a duplicate key, or is not a mapping.
    """
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{origin}: not a valid YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin}: found {show_value(tree)}; expected a mapping with name, data, run and stages")
    return tree


def merge_trees(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """A new tree with the keys of both; where both have a value, the update's counts; null removes a key.

    A stage has one length, so epochs, steps or schedule in the update replace whichever of them the base has.
    """
    replaces_length = any(update.get(length) is not None for length in LENGTHS)
    merged = {key: value for key, value in base.items() if key in update or not (replaces_length and key in LENGTHS)}
    for key, value in update.items():
        if isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge_trees(below if isinstance(below, dict) else {}, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets a key of a tree, in place, from ``key.path=value`` as the command line has it.

    Raises:
        RecipeError: The override is not written so, or its path does not exist in the recipe.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r}: found no key=value; write for example stages.embedding.optimizer.lr=1e-4")
    value = parse_tree(f"value: {text}", override)["value"]
    stages = tree.get("stages")
    if keys[0] == "stages" and len(keys) > 2 and isinstance(stages, dict) and keys[1] not in stages:
        raise RecipeError(f"{path}: there is no stage {keys[1]}{did_you_mean(keys[1], list(stages))} "
                          f"(stages: {', '.join(stages)})")
    if keys[0] == "stages" and len(keys) > 2 and keys[2] in LENGTHS and value is not None:
        stage = stages[keys[1]] if isinstance(stages, dict) else None
        for other in LENGTHS:
            if isinstance(stage, dict) and other != keys[2]:
                stage.pop(other, None)
    for key in keys[:-1]:
        if not isinstance(tree.setdefault(key, {}), dict):
            raise RecipeError(f"{path}: {key} is a value and has no keys below it; set {key} itself, or correct the "
                              "path")
        tree = tree[key]
    tree[keys[-1]] = value
