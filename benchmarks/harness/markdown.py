"""Numbers, values and tables as Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

NOT_MEASURED, NO_NUMBER = "not measured", "-"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, or every digit before the point."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if value == 0:
        return "0"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of one-line cells."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (head, *lines)]
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:]))


def plain(value: Any) -> str:
    """A value of a record in words; 'unknown' for none."""
    if value is None or value == "":
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
