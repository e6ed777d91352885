"""Trees of plain values, checked after parsing: what JSON and YAML files from strangers may contain.

A plain tree consists of mappings with text keys, lists, text, numbers, true, false and null. It shares no part with
itself, is at most `DEEPEST` levels deep and has at most `MOST` values and characters, so code that walks, prints or
writes it ends soon.
"""

from __future__ import annotations

import re
from typing import Any

MOST = 10**6
"""Values and characters of a tree, with aliases written out."""
DEEPEST = 50
"""Mappings and lists within each other; files of embae have 8 at most."""
TOO_DEEP = f"more than {DEEPEST} mappings and lists within each other"

_LARGEST = 2**63 - 1
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def copy_plain(tree: Any, most: int = MOST, *, number_keys: bool = False) -> Any:
    """Copies a parsed tree and checks that it is plain.

    The copy shares nothing: with YAML aliases, a change in one place would appear in others, and aliases of aliases
    grow exponentially.

    Args:
        tree: What a parser returned.
        most: Values and characters at most.
        number_keys: Whether keys may also be integers.

    Raises:
        ValueError: The tree is not plain, too deep or too large.
    """
    return _copy(tree, [most], number_keys, DEEPEST)


def _copy(value: Any, budget: list[int], number_keys: bool, levels: int) -> Any:
    if isinstance(value, (dict, list)) and not levels:
        raise ValueError(TOO_DEEP)
    budget[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if budget[0] < 0:
        raise ValueError("too large, with its aliases (*name) written out")
    if isinstance(value, dict):
        return {_key(key, number_keys): _copy(below, budget, number_keys, levels - 1) for key, below in value.items()}
    if isinstance(value, list):
        return [_copy(below, budget, number_keys, levels - 1) for below in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _integer(value)
    if not isinstance(value, (float, type(None))):
        raise ValueError(f"found a {type(value).__name__}; expected text, numbers, true, false, lists and mappings")
    return value


def _key(key: Any, number_keys: bool) -> Any:
    if isinstance(key, str):
        return _text(key)
    if number_keys and type(key) is int:
        return _integer(key)
    raise ValueError(f"the key {str(key)[:80]} is not text; put it in quotes")


def _integer(value: int) -> int:
    if abs(value) > _LARGEST:  # an array cannot store it, and Python cannot print one of 5,000 digits
        raise ValueError("found an integer of more than 64 bits")
    return value


def _text(text: str) -> str:
    if _NOT_TEXT.search(text):  # not allowed in a file name (null), or cannot be encoded (half a surrogate pair)
        raise ValueError(f"the text {text[:60]!r} contains an invalid character")
    return text
