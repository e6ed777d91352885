"""Turns pydantic's validation errors into sentences that begin with the dotted path of a recipe's key."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from embae.datasets.errors import did_you_mean
from embae.trainer.recipe.schema import Recipe


def show_value(value: Any) -> str:
    """A value as a message shows it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def key_names(model: type[BaseModel]) -> list[str]:
    """The keys of a model as a recipe writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def describe_mistakes(error: ValidationError, tree: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Every mistake, each path named once.

    Args:
        error: From validating `tree`.
        tree: The recipe with defaults filled in.
        written: ``defaults`` and ``stages`` as they were written: a mistake in defaults is named there.
    """
    messages: dict[str, list[str]] = {}
    rule_paths: set[str] = set()
    for item in error.errors():
        is_rule = item["type"] == "value_error"  # one of embae's own validators
        place = _find_place(item, tree)
        for line in item["msg"].removeprefix("Value error, ").split("\n"):
            keys, message = place, line
            if is_rule:
                message = _name_stages_as_written(line, tree, written)
                first, colon, rest = message.partition(": ")
                if colon and " " not in first:  # the validator names the key
                    keys, message = (*place, first), rest
            path = ".".join(_place_as_written(keys, written))
            messages.setdefault(path, []).append(_describe(item, message, place))
            rule_paths |= {path} if is_rule else set()
    # Of the alternatives for a value, the one that the author meant is where something below it is wrong.
    parents = {path[:end] for path in messages for end, letter in enumerate(path) if letter == "."}
    return [_join(path, lines) for path, lines in messages.items() if path in rule_paths or path not in parents]


def keys_at(place: Sequence[str]) -> list[str]:
    """The keys that a recipe may have at a place."""
    kind: Any = Recipe
    for key in place:
        models = [option for option in _options(kind) if isinstance(option, type) and issubclass(option, BaseModel)]
        if models:
            kinds = {field.alias or name: field.annotation for name, field in models[0].model_fields.items()}
            kind = kinds.get(key)
        else:
            kind = next((get_args(option)[1] for option in _options(kind) if get_origin(option) is dict), None)
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return key_names(option)
    return []


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _find_place(item: Any, tree: Any) -> tuple[str, ...]:
    """The keys to a mistake, without what pydantic adds for alternatives."""
    place = []
    for number, key in enumerate(item["loc"]):
        inside = key in tree if isinstance(tree, dict) else isinstance(tree, list) and key in range(len(tree))
        if inside:
            tree = tree[key]
        if inside or (item["type"] == "missing" and number == len(item["loc"]) - 1):
            place.append(str(key))
    return tuple(place)


def _place_as_written(place: tuple[str, ...], written: Mapping[str, Any]) -> tuple[str, ...]:
    """The place in the author's file: a stage without the number of its round, and keys of defaults in defaults."""
    if place[:1] == ("stages",) and len(place) > 1 and not _has_keys(written["stages"], place[1:2]):
        stage, _, number = place[1].rpartition("-")
        if number.isdigit() and _has_keys(written["stages"], [stage]):
            place = ("stages", stage, *place[2:])
    inherited = (place[:1] == ("stages",) and len(place) > 2 and _has_keys(written["defaults"], place[2:])
                 and not _has_keys(written["stages"], place[1:]))
    return ("defaults", *place[2:]) if inherited else place


def _name_stages_as_written(line: str, tree: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """A message that names stages as the author does, without the numbers of the rounds they are expanded to."""
    for name in tree.get("stages") or {}:
        stage, _, number = str(name).rpartition("-")
        if number.isdigit() and not _has_keys(written["stages"], [name]) and _has_keys(written["stages"], [stage]):
            line = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stage, line)
    return line


def _has_keys(tree: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _describe(item: Any, message: str, place: Sequence[str]) -> str:
    if item["type"] == "extra_forbidden":
        keys = keys_at(place[:-1])
        return f"unknown key{did_you_mean(place[-1], keys) or '; expected one of ' + ', '.join(keys)}"
    if item["type"] == "missing":
        return "missing"
    if item["type"] == "value_error":
        return message
    if item["type"] == "string_pattern_mismatch":
        message = "expected letters, digits, _ and -, a letter or digit first"
    expected = re.sub(r"^\w+ should (be|have) (.*?)( after validation.*)?$", r"expected \2", message)
    return f"found {show_value(item['input'])}; {expected[:1].lower()}{expected[1:]}"


def _join(path: str, messages: list[str]) -> str:
    """One sentence from several about one path, which differ in what they expected."""
    messages = list(dict.fromkeys(messages))
    start = messages[0].partition("expected ")[0]
    if len(messages) > 1 and all(message.startswith(start + "expected ") for message in messages):
        alternatives = [message.removeprefix(start + "expected ") for message in messages[1:]]
        messages = [messages[0] + "".join(f", or {alternative}" for alternative in alternatives)]
    return (f"{path}: " if path else "") + "; ".join(messages)
