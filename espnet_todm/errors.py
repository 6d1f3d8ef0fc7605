"""The one exception for what a user can cause: a wrong key, a missing file, an infeasible budget."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: the key, the value, and what is allowed."""
