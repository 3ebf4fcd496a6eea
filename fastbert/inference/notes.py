"""Counts of rows that were cut, empty and the like, with the locations of the first ones."""

import sys
import warnings
from dataclasses import dataclass, field

SHOWN_LOCATIONS = 3


@dataclass
class Notes:
    """counts: rows by message. locations: the first rows by message."""

    counts: dict[str, int] = field(default_factory=dict)
    locations: dict[str, list[str]] = field(default_factory=dict)

    def add(self, message: str, location: str) -> None:
        """Counts one row."""
        self.counts[message] = self.counts.get(message, 0) + 1
        first = self.locations.setdefault(message, [])
        if len(first) < SHOWN_LOCATIONS:
            first.append(location)

    def lines(self) -> list[str]:
        """One line per message: what, in how many rows, and the first of them."""
        return [
            f"{message}: {count:,} ({', '.join(self.locations[message])}{', ...' if count > SHOWN_LOCATIONS else ''})"
            for message, count in self.counts.items()
        ]

    def warn(self) -> None:
        """Warns with each line, at the first caller that is not of this package."""
        lines = self.lines()
        if not lines:
            return
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(__package__ + "."):
            level, frame = level + 1, frame.f_back
        for line in lines:
            warnings.warn(line, stacklevel=level)
