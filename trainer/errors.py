"""Errors that a user can fix, and their exit codes. `embae.datasets.errors.DataError` belongs to them."""

from __future__ import annotations

from embae.datasets.errors import DataError


class RecipeError(ValueError):
    """A recipe or run folder cannot be used; the message lists every mistake by its dotted path."""


class RunError(RuntimeError):
    """A run that had started failed; the message says how the user can fix it."""


class WeightsError(ValueError):
    """Weights cannot be used; the message names the file or key and what is wrong with it."""


class Stopped(Exception):
    """A run stopped on request after a step, with a checkpoint; the message says where."""


def exit_code(error: BaseException) -> int:
    """The exit code of an error: 2 for bad input, before anything started; 1 for a run that failed."""
    return 2 if isinstance(error, (DataError, RecipeError, WeightsError)) else 1


def lost_rank(error: BaseException) -> RunError | None:
    """The error to show where an exchange failed because another rank is lost; None for any other error."""
    text = str(error)
    if type(error).__name__ not in ("DistBackendError", "DistNetworkError", "DistStoreError") and "gloo" not in text:
        return None
    return RunError("the connection to another rank broke: that rank or its node ended; see its last message. Run the "
                    f"same command again to resume from the last checkpoint ({text.splitlines()[0]})")
