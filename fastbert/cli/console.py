"""Where commands print."""

import os
from typing import Any

WIDTH = 120  # for the tables, where neither a terminal nor $COLUMNS says


def console() -> Any:
    """Rich's console on stdout."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal or os.environ.get("COLUMNS", "").isdecimal() else Console(width=WIDTH)
