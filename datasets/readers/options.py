"""Options of a reader, taken from its signature: `option: type = default`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from embae.datasets.errors import DataError, did_you_mean

_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def choose_from(word: str, choices: Iterable[str]) -> str:
    """The end of a message that rejects `word`: the nearest choice, if one is near, and all choices."""
    choices = list(choices)
    listed = f" (choose from {', '.join(choices)})" if choices else " (there are no choices)"
    return did_you_mean(word, choices) + listed


def convert_options(source: str, list_records: Callable[..., Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Converts options to the types that a reader's annotations name.

    Args:
        source: The reader's name, for messages.
        list_records: The reader's function; an annotation is str, int, float, bool, a Literal, or one of these or None.
        options: As written on the command line.

    Raises:
        DataError: An option is unknown, a required option is missing, or a value cannot be converted.
    """
    hints = get_type_hints(list_records)
    parameters = {name: option for name, option in inspect.signature(list_records).parameters.items() if name != "root"}
    for name in options:
        if name not in parameters:
            raise DataError(f"{source}: unknown option {name!r}{choose_from(name, parameters)}")
    for name, option in parameters.items():
        if option.default is option.empty and name not in options:
            choices = ", ".join(map(str, get_args(hints[name])))
            raise DataError(f"{source}: needs option {name!r}" + f" (choose from {choices})" * bool(choices))
    return {name: _convert(f"{source}: {name}={text}", hints[name], text) for name, text in options.items()}


def _convert(place: str, kind: Any, text: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (member for member in get_args(kind) if member is not types.NoneType)
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise DataError(f"{place}: unknown value{choose_from(text, choices)}")
        return choices[text]
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise DataError(f"{place}: expected {expected}") from None
