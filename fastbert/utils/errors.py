"""What a user can mend, and how the errors of other libraries are told in one line."""

from textwrap import shorten

LONGEST = 300  # characters of another library's message


class InputError(ValueError):
    """What the user named cannot be used; the message says what was expected and what came."""


def in_one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, or its type where it has none."""
    return shorten(str(error), LONGEST, placeholder=" ...") or type(error).__name__
