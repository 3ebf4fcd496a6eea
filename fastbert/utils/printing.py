"""Lines of text on Rich's console."""

from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]


def print_line(console: Any, line: str) -> None:
    """Prints a line as it is: brackets are no markup, numbers get no color, and nothing is wrapped. console: Rich's."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def line_printer(console: Any) -> Say:
    """`print_line` on this console, as a function of the line."""
    return lambda line: print_line(console, line)


def number_of(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: "1 row", "2,000 rows". plural: where it is not the singular with an s."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
