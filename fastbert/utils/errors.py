"""Errors that a user can act on, and the messages of other libraries in one line."""

from textwrap import shorten

MAX_MESSAGE_CHARACTERS = 300  # of another library's message


class InputError(ValueError):
    """What the user named cannot be used; the message says what was expected and what was found."""


class DataError(ValueError):
    """Training data, prepared or to be prepared, cannot be used; the message says what was expected and what was found."""


class Resumable(Exception):
    """A run was stopped, and --resume continues it.

    message: for the user, printed without a traceback. status: the exit status of the command.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def in_one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, or its type where it has none."""
    return shorten(str(error), MAX_MESSAGE_CHARACTERS, placeholder=" ...") or type(error).__name__
