"""What a user can mend. `DataError` of `embae.datasets` is the third of the kind."""

from __future__ import annotations

from embae.datasets.errors import DataError


class RecipeError(ValueError):
    """A recipe, or a run folder, that cannot be used; the message lists every mistake by its dotted path."""


class RunError(RuntimeError):
    """What ended a run that had started, said so that the user can mend it."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or key and what is wrong with it."""


class Stopped(Exception):
    """A run was asked to stop, and did after a step, with a checkpoint; the message says where."""


def exit_code(error: BaseException) -> int:
    """2 for bad input, on which nothing has started; 1 for a run that failed."""
    return 2 if isinstance(error, (DataError, RecipeError, WeightsError)) else 1


def lost_rank(error: BaseException) -> RunError | None:
    """What an exchange raises where another rank is gone, said for a user; None for any other error."""
    text = str(error)
    if type(error).__name__ not in ("DistBackendError", "DistNetworkError", "DistStoreError") and "gloo" not in text:
        return None
    return RunError("the connection to another rank broke: it ended, or its node did; see what that one said last. "
                    f"The same command goes on from the last checkpoint ({text.splitlines()[0]})")
