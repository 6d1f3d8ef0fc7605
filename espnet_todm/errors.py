"""The one exception for what a user can cause (a wrong key, a missing file), and the words of others in its message."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: the key, the value, and what is allowed."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another's exception on one line of bounded length, for the message of a UserError."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else words[:limit] + " ..."


def last_line(text: str, limit: int = 300) -> str:
    """The last line of what a program wrote that is not blank: the one that says why it ended. "" when there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else ""
