"""Options of a reader, taken from its signature: `option: type = default`."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from embae.datasets.errors import DataError

_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence that refuses `word`: the nearest choice, if one is near, and all of them."""
    choices = list(choices)
    near = "".join(f"; did you mean {choice}?" for choice in difflib.get_close_matches(word, choices, n=1))
    return f"{near} (choose from {', '.join(choices)})" if choices else " (there is none to choose)"


def convert(source: str, reader: Callable[..., Any], options: Mapping[str, str]) -> dict[str, Any]:
    """The options as the annotations of `reader` want them: str, int, float, bool, Literal, or one of these or None.

    Raises:
        DataError: An option that the reader does not have, one that it cannot do without, or a value that cannot be.
    """
    hints = get_type_hints(reader)
    known = {name: option for name, option in inspect.signature(reader).parameters.items() if name != "root"}
    for name in options:
        if name not in known:
            raise DataError(f"{source}: unknown option {name!r}{did_you_mean(name, known)}")
    for name, option in known.items():
        if option.default is option.empty and name not in options:
            choices = ", ".join(map(str, get_args(hints[name])))
            raise DataError(f"{source}: needs option {name!r}" + f" (choose from {choices})" * bool(choices))
    return {name: _value(f"{source}: {name}={text}", hints[name], text) for name, text in options.items()}


def _value(said: str, kind: Any, text: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise DataError(f"{said}: unknown value{did_you_mean(text, choices)}")
        return choices[text]
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise DataError(f"{said}: wanted {wanted}") from None
