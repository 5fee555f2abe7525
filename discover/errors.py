"""What a user did wrong, in one line: what, where, what was expected, what to do. Anything else is a bug."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that its maker can mend. The command line prints the text and leaves with exit code 2."""


class SpaceError(UserError):
    """A search space that cannot be read: "FILE: key: what was wrong"."""


class RunError(UserError):
    """A run folder that is missing, not a run, of another version, locked, or not to be written."""


class ClusterError(UserError):
    """A Ray cluster that is not there, is gone, or cannot start workers."""


class ArchiveError(RunError):
    """An archive that cannot be opened, read or written."""
