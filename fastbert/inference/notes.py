"""What was done to rows beyond running them, counted: nothing is silent."""

import warnings
from dataclasses import dataclass, field

SHOWN_PLACES = 3


@dataclass
class Notes:
    """counts: message -> rows. places: message -> where first."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, message: str, place: str) -> None:
        self.counts[message] = self.counts.get(message, 0) + 1
        first = self.places.setdefault(message, [])
        if len(first) < SHOWN_PLACES:
            first.append(place)

    def lines(self) -> list[str]:
        """One line for each message: what, in how many rows, and where first."""
        return [
            f"{message}: {count:,} ({', '.join(self.places[message])}{', ...' if count > SHOWN_PLACES else ''})"
            for message, count in self.counts.items()
        ]

    def warn(self) -> None:
        for line in self.lines():
            warnings.warn(line, stacklevel=3)
