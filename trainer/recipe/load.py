"""Loads recipes: resolves ``extends``, settings, defaults, overrides and rounds, and reports every mistake at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from embae.datasets.errors import did_you_mean
from embae.datasets.files.yaml_files import format_yaml
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.mistakes import describe_mistakes, key_names, show_value
from embae.trainer.recipe.rounds import expand_rounds
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.shipped import SETTINGS, read_text, shipped_names
from embae.trainer.recipe.stage import LENGTHS, Stage
from embae.trainer.recipe.trees import apply_override, merge_trees, parse_tree


def load_recipe(recipe: str, overrides: Sequence[str] = (), settings: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe: A YAML file, or the bare name of a shipped recipe.
        overrides: ``key.path=value`` pairs, the value in YAML; null removes a key.
        settings: Files or names of shipped settings, see `SETTINGS`; they apply before the overrides.

    Raises:
        RecipeError: Listing every mistake.
    """
    tree = _read_tree(recipe, ())
    for name in settings:
        tree = _apply_settings(tree, name)
    mistakes = []
    for override in overrides:
        try:
            apply_override(tree, override)
        except RecipeError as error:
            mistakes.append(str(error))
    return check_recipe(tree, recipe, mistakes)


def check_recipe(tree: dict[str, Any], origin: str, earlier: Sequence[str] = ()) -> Recipe:
    """Checks a recipe given as a plain tree.

    Args:
        tree: As parsed, with ``defaults``.
        origin: The name for the recipe in messages.
        earlier: Mistakes that are known already.

    Raises:
        RecipeError: Listing every mistake.
    """
    mistakes = list(earlier)
    defaults, written = tree.get("defaults") or {}, tree.get("stages")
    tree = {key: value for key, value in tree.items() if key != "defaults"}
    if not isinstance(defaults, dict):
        mistakes.append(f"defaults: found {show_value(defaults)}; expected keys of a stage")
        defaults = {}
    keys = key_names(Stage)
    mistakes += [f"defaults.{key}: unknown key{did_you_mean(key, keys)}" for key in defaults if key not in keys]
    if isinstance(written, dict):
        shared = {key: value for key, value in defaults.items() if key in keys}
        untrained = {key: value for key, value in shared.items() if key not in LENGTHS}
        tree["stages"] = {name: merge_trees(untrained if {"calibrate", "cluster"} & stage.keys() else shared, stage)
                          if isinstance(stage, dict) else stage for name, stage in written.items()}
    tree, round_mistakes = expand_rounds(tree)
    mistakes += round_mistakes
    try:
        recipe = Recipe.model_validate(merge_trees({}, tree))
    except ValidationError as error:
        mistakes += describe_mistakes(error, tree, {"defaults": defaults, "stages": written})
    if mistakes:
        raise RecipeError(f"{origin}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the recipe\n"
                          + "\n".join(f"  {line}" for line in mistakes))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back."""
    return format_yaml(recipe.model_dump(mode="json", by_alias=True), ascii_only=True)


def _read_tree(recipe: str, children: tuple[str, ...]) -> dict[str, Any]:
    """A recipe merged over what it extends and its settings; ``children`` are the recipes that extend it."""
    text, origin = read_text(recipe)
    place = str(Path(origin).resolve()) if os.path.isfile(origin) else origin
    if place in children:
        raise RecipeError(f"{origin}: extends itself ({' → '.join((*children, place))}); remove one extends")
    tree = parse_tree(text, origin)
    parent, settings = tree.pop("extends", None), tree.pop(SETTINGS, None)
    for key, value, expected in (("extends", parent, "the name of a shipped recipe, or a file"),
                                 (SETTINGS, settings, "the name of shipped settings, or a file")):
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{origin}: {key}: found {show_value(value)}; expected {expected}")
    if parent is None and settings is None:
        return tree  # its nulls may be for defaults
    base: dict[str, Any] = {}
    if parent is not None:
        try:
            base = _read_tree(_next_to(origin, parent), (*children, place))
        except RecipeError as error:
            raise RecipeError(f"{error}" if children else f"{error} (extended by {origin})") from error
    if settings is not None:
        try:
            base = _apply_settings(base, _next_to(origin, settings))
        except RecipeError as error:
            raise RecipeError(f"{error} (settings of {origin})") from error
    return merge_trees(base, tree)


def _next_to(origin: str, name: str) -> str:
    """A file of this name in the folder of `origin`, or the name itself."""
    path = Path(origin).parent / name
    return str(path) if os.path.isfile(path) else name  # not Path.is_file, which raises for a name that is too long


def _apply_settings(tree: dict[str, Any], settings: str) -> dict[str, Any]:
    """The recipe with settings merged over it."""
    text, origin = read_text(settings, SETTINGS)
    update = parse_tree(text, origin)
    stages, settings_stages = tree.get("stages") or {}, update.pop("stages", None) or {}
    if not isinstance(settings_stages, dict):
        raise RecipeError(f"{origin}: stages: found {show_value(settings_stages)}; expected a mapping")
    if not isinstance(stages, dict):
        return merge_trees(tree, update)  # `check_recipe` reports what is wrong with the stages
    names = {*stages, *_shipped_stages()}
    if unknown := [name for name in settings_stages if name not in names]:
        raise RecipeError(f"{origin}: stages: {unknown[0]} is not a stage of this recipe or of a shipped one"
                          f"{did_you_mean(unknown[0], sorted(names))}")
    chosen = {name: settings_stages[name] for name, stage in stages.items()
              if stage is not None and name in settings_stages}
    return merge_trees(merge_trees(tree, update), {"stages": chosen})


@cache
def _shipped_stages() -> set[str]:
    trees = [parse_tree(read_text(name)[0], name) for name in shipped_names()]
    return {stage for tree in trees for stage in tree.get("stages") or {}}
