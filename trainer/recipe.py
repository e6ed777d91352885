"""Reads recipes: YAML, ``extends``, defaults, overrides, and errors that say all that is wrong at once."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from embae.trainer.errors import RecipeError
from embae.trainer.schema import Recipe, Stage


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 3e-4 as a number, which YAML 1.1 does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(entry.name[:-5] for entry in resources.files("embae.recipes").iterdir() if entry.name.endswith(".yaml"))


def source(recipe: str) -> tuple[str, str]:
    """Text of a recipe and the name to call it by: a file, or the bare name of a shipped one.

    Raises:
        RecipeError: There is neither.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from error
    if recipe in names():
        return (resources.files("embae.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    raise RecipeError(f"{recipe}: no such file, and no recipe of that name is shipped{_did_you_mean(recipe, names())}. "
                      f"Shipped: {', '.join(names())}")


def load(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe: A YAML file, or the bare name of a shipped recipe.
        overrides: ``key.path=value`` pairs, the value in YAML.

    Raises:
        RecipeError: Listing every mistake.
    """
    tree = _read(recipe, ())
    for override in overrides:
        _override(tree, override)
    return check(tree, recipe)


def check(tree: dict[str, Any], origin: str) -> Recipe:
    """Checks a recipe given as a plain tree."""
    tree = dict(tree)
    defaults = tree.pop("defaults", None) or {}
    wrong = []
    if not isinstance(defaults, dict):
        wrong.append(f"defaults: found {defaults!r}, wanted keys of a stage")
    elif isinstance(tree.get("stages"), dict):
        wrong += [f"defaults.{key}: unknown key{_did_you_mean(key, list(Stage.model_fields))}"
                  for key in defaults if key not in Stage.model_fields]
        known = {key: value for key, value in defaults.items() if key in Stage.model_fields}
        tree["stages"] = {name: merge(known, stage) if isinstance(stage, dict) else stage
                          for name, stage in tree["stages"].items()}
    try:
        found = Recipe.model_validate(tree)
    except ValidationError as error:
        wrong += [_sentence(item) for item in error.errors()]
    if wrong:
        raise RecipeError(f"{origin}: {len(wrong)} mistake{'s' * (len(wrong) > 1)} in the recipe\n"
                          + "\n".join(f"  {line}" for line in wrong))
    return found


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False)


def parse(text: str, origin: str) -> dict[str, Any]:
    """Parses a YAML mapping safely.

    Raises:
        RecipeError: Not YAML, a duplicate key, or not a mapping.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{origin}: not a valid YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin}: found {type(tree).__name__}, wanted a mapping with name, data, run and stages")
    return tree


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two trees as one; where both have a value, the second one's; null takes a key away."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _read(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    text, origin = source(recipe)
    if origin in seen:
        raise RecipeError(f"{origin}: extends itself ({' → '.join((*seen, origin))})")
    tree = parse(text, origin)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = Path(origin).parent / str(parent)
    return merge(_read(str(beside) if beside.is_file() else str(parent), (*seen, origin)), tree)


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r}: found no key=value; write for example stages.embedding.optimizer.lr=1e-4")
    value = parse(f"value: {text}", override)["value"]
    for key in keys[:-1]:
        if not isinstance(tree.setdefault(key, {}), dict):
            raise RecipeError(f"{override!r}: {key} holds a value, not further keys")
        tree = tree[key]
    tree[keys[-1]] = value


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _sentence(error: Any) -> str:
    """One mistake, by its dotted path, with what was found."""
    path = ".".join(str(key) for key in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(error["loc"][:-1])
        return f"{path}: unknown key{_did_you_mean(error['loc'][-1], known) or '; known here: ' + ', '.join(known)}"
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: found {error['input']!r}; {message[0].lower() + message[1:]}"


def _keys(loc: Sequence[str | int]) -> list[str]:
    """The keys that may stand at a place of a recipe."""
    kind: Any = Recipe
    for key in loc:
        models = [option for option in _options(kind) if isinstance(option, type) and issubclass(option, BaseModel)]
        if models:
            fields = {field.alias or name: field for name, field in models[0].model_fields.items()}
            kind = fields[str(key)].annotation if str(key) in fields else None
        else:
            kind = get_args(next((o for o in _options(kind) if get_origin(o) is dict), dict[str, None]))[1]
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return [field.alias or name for name, field in option.model_fields.items()]
    return []


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
