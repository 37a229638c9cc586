"""The two ways in which a user's request can be wrong.

Every message is one line: what is wrong, where (file, tag, flag), and the mend.
"""


class UsageError(ValueError):
    """A wrong flag or flag value (exit status 2)."""


class DataError(ValueError):
    """Wrong data or surroundings: files, memory, disk (exit status 1)."""
