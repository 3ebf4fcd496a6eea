"""Sequence lengths to benchmark with: fixed, drawn from counted data sets, or from the generators the field uses.

The counts are in lengths.json, with their sources.
"""

import json
import random
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "lengths.json"
GENERATED = {
    "fixed": "every sequence of the maximum length",
    "normal": "normal(256, 64) clipped to 16 and the maximum length, as in ModernBERT's efficiency table (Warner et al. 2024)",
}


def mixes() -> dict[str, str]:
    """What each length mix is, by name."""
    return GENERATED | {name: mix["source"] for name, mix in _counted().items()}


def draw(mix: str, batch_size: int, max_seqlen: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths of one batch, each from 1 to max_seqlen: longer rows of a data set are cut there, as a tokenizer cuts them.

    Raises ValueError for a name that `mixes` does not list.
    """
    rng = random.Random(f"{mix} {seed}")
    if mix == "fixed":
        return (max_seqlen,) * batch_size
    if mix == "normal":
        return tuple(min(max(round(rng.gauss(256, 64)), 16), max_seqlen) for _ in range(batch_size))
    if mix not in _counted():
        raise ValueError(f"expected a length mix among {', '.join(mixes())}, got {mix!r}")
    histogram = _counted()[mix]["histogram"]
    lengths = rng.choices([int(length) for length in histogram], list(histogram.values()), k=batch_size)
    return tuple(min(length, max_seqlen) for length in lengths)


@cache
def _counted() -> dict:
    return json.loads(DATA.read_text(encoding="utf-8"))["mixes"]
