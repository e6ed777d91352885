"""What goes wrong with a user's data, said so that the user can mend it."""


class DataError(ValueError):
    """Bad images, shards or indexes.

    The message names the file or key, what was found, what was wanted, and the remedy.
    """
