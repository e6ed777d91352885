"""The error for problems with a user's data, with a message that says how to solve them."""


class DataError(ValueError):
    """Bad images, shards or indexes.

    The message names the file or key, what was found, what was expected, and the remedy.
    """
