"""The error for problems with a user's data, with a message that says how to solve them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Bad images, shards or indexes.

    The message names the file or key, what was found, what was expected, and the remedy.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a message that rejects `word`: the nearest of the choices, or nothing if none is near."""
    close = difflib.get_close_matches(word[:100], list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""
