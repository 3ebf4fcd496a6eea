"""Where commands print."""

from typing import Any


def console() -> Any:
    """Rich's console on stdout; 120 columns wide, for the tables, where that is no terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=120)
