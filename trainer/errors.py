"""What a user can mend. `DataError` of `embae.datasets` is the third of the kind."""


class RecipeError(ValueError):
    """A recipe, or a run folder, that cannot be used; the message lists every mistake by its dotted path."""


class RunError(RuntimeError):
    """What ended a run that had started, said so that the user can mend it."""


class ExportError(ValueError):
    """Weights that cannot be used; the message names the file or key and what is wrong with it."""
