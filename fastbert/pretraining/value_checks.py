"""Checks of an optimizer's and a recipe's options."""

import math
from typing import Any


def check_number(name: str, value: Any, *, above: bool = False, below: float = math.inf) -> None:
    """Raises TypeError unless value is a real number, ValueError unless 0 <= value < below (0 < value if above)."""
    expected = f"expected {name} to be a finite number {'above' if above else 'of at least'} 0"
    expected += f" and below {below:g}" if below < math.inf else ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{expected}, got {value!r}")
    if not (0 < value if above else 0 <= value) or not value < below:
        raise ValueError(f"{expected}, got {value!r}")


def check_betas(betas: Any) -> None:
    """Raises TypeError, ValueError unless betas are two numbers from 0 to below 1."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"expected betas to be two numbers, got {betas!r}")
    for name, beta in zip(("betas[0]", "betas[1]"), betas):
        check_number(name, beta, below=1.0)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises ValueError unless value is one of the names in choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value!r}")


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises TypeError unless value is an integer, ValueError unless it is at least minimum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} to be a whole number of at least {minimum}, got {value!r}")
    if value < minimum:
        raise ValueError(f"expected {name} to be a whole number of at least {minimum}, got {value!r}")
