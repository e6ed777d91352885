"""What pydantic finds wrong with a recipe, as sentences that begin with the dotted path."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from embae.datasets.errors import did_you_mean
from embae.trainer.recipe.schema import Recipe


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def fields(model: type[BaseModel]) -> list[str]:
    """The keys of a model as a recipe writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def sentences(error: ValidationError, tree: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Every mistake, each place named once.

    Args:
        error: Of validating `tree`.
        tree: The recipe with defaults filled in.
        written: ``defaults`` and ``stages`` as they were written: a mistake in defaults is named there.
    """
    found: dict[str, list[str]] = {}
    rules: set[str] = set()
    for item in error.errors():
        place = _place(item, tree)
        for line in item["msg"].removeprefix("Value error, ").split("\n"):
            if item["type"] == "value_error":
                line = _without_rounds(line, tree, written)
            key, said = place, line
            if item["type"] == "value_error":
                first, colon, rest = line.partition(": ")
                if colon and " " not in first:  # our own, which names the key
                    key, said = (*place, first), rest
            path = ".".join(_where_written(key, written))
            found.setdefault(path, []).append(_said(item, said, place))
            rules |= {path} if item["type"] == "value_error" else set()
    # Of the alternatives for a value, the one that the writer meant is where something below it is wrong.
    return [_joined(path, said) for path, said in found.items()
            if path in rules or not any(other.startswith(path + ".") for other in found)]


def _place(item: Any, tree: Any) -> tuple[str, ...]:
    """The keys to a mistake, without what pydantic adds for alternatives."""
    place = []
    for number, key in enumerate(item["loc"]):
        inside = key in tree if isinstance(tree, dict) else isinstance(tree, list) and key in range(len(tree))
        if inside:
            tree = tree[key]
        if inside or (item["type"] == "missing" and number == len(item["loc"]) - 1):
            place.append(str(key))
    return tuple(place)


def _where_written(place: tuple[str, ...], written: Mapping[str, Any]) -> tuple[str, ...]:
    if place[:1] == ("stages",) and len(place) > 1 and not _holds(written["stages"], place[1:2]):
        stage, _, number = place[1].rpartition("-")  # one of the rounds that it was written out to
        if number.isdigit() and _holds(written["stages"], [stage]):
            place = ("stages", stage, *place[2:])
    inherited = (place[:1] == ("stages",) and len(place) > 2 and _holds(written["defaults"], place[2:])
                 and not _holds(written["stages"], place[1:]))
    return ("defaults", *place[2:]) if inherited else place


def _without_rounds(line: str, tree: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """A line of ours that names stages as the writer does, not by the rounds that they were written out to."""
    for name in tree.get("stages") or {}:
        stage, _, number = str(name).rpartition("-")
        if number.isdigit() and not _holds(written["stages"], [name]) and _holds(written["stages"], [stage]):
            line = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stage, line)
    return line


def _holds(tree: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _said(item: Any, message: str, place: Sequence[str]) -> str:
    if item["type"] == "extra_forbidden":
        known = keys_at(place[:-1])
        return f"unknown key{did_you_mean(place[-1], known) or '; known here: ' + ', '.join(known)}"
    if item["type"] == "missing":
        return "missing"
    if item["type"] == "value_error":
        return message
    if item["type"] == "string_pattern_mismatch":
        message = "wanted letters, digits, _ and -, a letter or digit first"
    wanted = re.sub(r"^\w+ should (be|have) (.*?)( after validation.*)?$", r"wanted \2", message)
    return f"found {short(item['input'])}; {wanted[:1].lower()}{wanted[1:]}"


def _joined(path: str, said: list[str]) -> str:
    """One sentence of several about one place, which differ in what they wanted."""
    said = list(dict.fromkeys(said))
    start = said[0].partition("wanted ")[0]
    if len(said) > 1 and all(one.startswith(start + "wanted ") for one in said):
        said = [said[0] + "".join(f", or {one.removeprefix(start + 'wanted ')}" for one in said[1:])]
    return (f"{path}: " if path else "") + "; ".join(said)


def keys_at(place: Sequence[str]) -> list[str]:
    """The keys that may stand at a place of a recipe."""
    kind: Any = Recipe
    for key in place:
        models = [option for option in _options(kind) if isinstance(option, type) and issubclass(option, BaseModel)]
        if models:
            known = {field.alias or name: field.annotation for name, field in models[0].model_fields.items()}
            kind = known.get(key)
        else:
            kind = next((get_args(option)[1] for option in _options(kind) if get_origin(option) is dict), None)
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return fields(option)
    return []


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
