"""Reads recipes: YAML, ``extends``, settings, defaults, overrides, and errors that say all that is wrong at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from embae.datasets.errors import did_you_mean
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.datasets.files.yaml_files import format_yaml, parse_yaml
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.mistakes import fields, sentences, short
from embae.trainer.recipe.rounds import expand
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import LENGTHS, Stage


def names(folder: str = "") -> list[str]:
    """Names of the shipped recipes, or of the shipped ``settings``."""
    files = [entry.name for entry in (resources.files("embae.recipes") / folder).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def source(recipe: str, folder: str = "") -> tuple[str, str]:
    """Text of a recipe and the name to call it by: a file, or the bare name of a shipped one.

    Raises:
        RecipeError: There is neither.
    """
    path, what = Path(recipe), folder or "recipe"
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
        try:
            return read_bytes(path, MOST).decode(), str(path)
        except (OSError, ValueError) as error:  # a ValueError: not UTF-8, or a name that no file can have
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from error
    if recipe in names(folder):
        return (resources.files("embae.recipes") / folder / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    raise RecipeError(f"{recipe}: no such file, and no {what} of that name is shipped"
                      f"{did_you_mean(recipe, names(folder))} (shipped: {', '.join(names(folder))})")


def load(recipe: str, overrides: Sequence[str] = (), settings: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe: A YAML file, or the bare name of a shipped recipe.
        overrides: ``key.path=value`` pairs, the value in YAML; null takes a key away.
        settings: Files or names of shipped settings, see `SETTINGS`; they apply before the overrides.

    Raises:
        RecipeError: Listing every mistake.
    """
    tree = _read(recipe, ())
    for name in settings:
        tree = _settle(tree, name)
    wrong = []
    for override in overrides:
        try:
            _override(tree, override)
        except RecipeError as error:
            wrong.append(str(error))
    return check(tree, recipe, wrong)


def check(tree: dict[str, Any], origin: str, wrong: Sequence[str] = ()) -> Recipe:
    """Checks a recipe given as a plain tree.

    Args:
        tree: As parsed, with ``defaults``.
        origin: What to call it.
        wrong: Mistakes found before.

    Raises:
        RecipeError: Listing every mistake.
    """
    mistakes = list(wrong)
    defaults, written = tree.get("defaults") or {}, tree.get("stages")
    tree = {key: value for key, value in tree.items() if key != "defaults"}
    if not isinstance(defaults, dict):
        mistakes.append(f"defaults: found {short(defaults)}; wanted keys of a stage")
        defaults = {}
    known = fields(Stage)
    mistakes += [f"defaults.{key}: unknown key{did_you_mean(key, known)}" for key in defaults if key not in known]
    if isinstance(written, dict):
        shared = {key: value for key, value in defaults.items() if key in known}
        lasting = {key: value for key, value in shared.items() if key not in LENGTHS}
        tree["stages"] = {name: merge(lasting if {"calibrate", "cluster"} & stage.keys() else shared, stage)
                          if isinstance(stage, dict) else stage for name, stage in written.items()}
    tree, astray = expand(tree)
    mistakes += astray
    try:
        found = Recipe.model_validate(merge({}, tree))
    except ValidationError as error:
        mistakes += sentences(error, tree, {"defaults": defaults, "stages": written})
    if mistakes:
        raise RecipeError(f"{origin}: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the recipe\n"
                          + "\n".join(f"  {line}" for line in mistakes))
    return found


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load` reads back."""
    return format_yaml(recipe.model_dump(mode="json", by_alias=True), ascii_only=True)


def parse(text: str, origin: str) -> dict[str, Any]:
    """Parses a YAML mapping safely.

    Raises:
        RecipeError: Not YAML, a duplicate key, or not a mapping.
    """
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{origin}: not a valid YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin}: found {short(tree)}; wanted a mapping with name, data, run and stages")
    return tree


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two trees as one; where both have a value, the second one's; null takes a key away.

    A stage has one length, so its epochs, steps or schedule in the second replace what the first has for it.
    """
    merged = {key: value for key, value in under.items() if key in over or not _length(over, key)}
    for key, value in over.items():
        if isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _length(over: dict[str, Any], key: str) -> bool:
    """Whether a key is a length of a stage for which another tree has its own."""
    return key in LENGTHS and any(over.get(own) is not None for own in LENGTHS)


SETTINGS = "settings"
"""What of a recipe depends on data and machine, in a file of its own: any recipe's keys, to go with many recipes.

Of ``stages`` it may name those of any shipped recipe; a recipe takes the lines of the stages that it has.
"""


def _read(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    text, origin = source(recipe)
    place = str(Path(origin).resolve()) if os.path.isfile(origin) else origin
    if place in seen:
        raise RecipeError(f"{origin}: extends itself ({' → '.join((*seen, place))})")
    tree = parse(text, origin)
    parent, settings = tree.pop("extends", None), tree.pop(SETTINGS, None)
    for key, value, wanted in (("extends", parent, "the name of a shipped recipe, or a file"),
                               (SETTINGS, settings, "the name of shipped settings, or a file")):
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{origin}: {key}: found {short(value)}; wanted {wanted}")
    if parent is None and settings is None:
        return tree  # its nulls may be for defaults
    below: dict[str, Any] = {}
    if parent is not None:
        try:
            below = _read(_beside(origin, parent), (*seen, place))
        except RecipeError as error:
            raise RecipeError(f"{error}" if seen else f"{error} (extended by {origin})") from error
    if settings is not None:
        try:
            below = _settle(below, _beside(origin, settings))
        except RecipeError as error:
            raise RecipeError(f"{error} (settings of {origin})") from error
    return merge(below, tree)


def _beside(origin: str, name: str) -> str:
    beside = Path(origin).parent / name
    return str(beside) if os.path.isfile(beside) else name  # not Path.is_file, which a name too long makes raise


def _settle(tree: dict[str, Any], settings: str) -> dict[str, Any]:
    """The recipe with settings merged over it."""
    text, origin = source(settings, SETTINGS)
    over = parse(text, origin)
    mine, stages = tree.get("stages") or {}, over.pop("stages", None) or {}
    if not isinstance(stages, dict):
        raise RecipeError(f"{origin}: stages: found {short(stages)}; wanted a mapping")
    if not isinstance(mine, dict):
        return merge(tree, over)  # what is wrong with the recipe is said when it is checked
    known = {*mine, *_shipped_stages()}
    if unknown := [name for name in stages if name not in known]:
        raise RecipeError(f"{origin}: stages: {unknown[0]} is a stage of no recipe"
                          f"{did_you_mean(unknown[0], sorted(known))}")
    return merge(merge(tree, over), {"stages": {name: stages[name] for name, stage in mine.items()
                                                  if stage is not None and name in stages}})


@cache
def _shipped_stages() -> set[str]:
    trees = [parse(source(name)[0], name) for name in names()]
    return {stage for tree in trees for stage in tree.get("stages") or {}}


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r}: found no key=value; write for example stages.embedding.optimizer.lr=1e-4")
    value = parse(f"value: {text}", override)["value"]
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
            raise RecipeError(f"{path}: {key} holds a value, not further keys")
        tree = tree[key]
    tree[keys[-1]] = value
