"""Which format a file has: by the user's word or what its name ends in; another name is refused, not guessed at."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastbert.utils.errors import InputError

SUFFIXES = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "conll": (".conll", ".bio", ".iob", ".iob2", ".bioes", ".bilou"),
    "text": (".txt",),
}
TABLES = ("csv", "tsv", "jsonl", "json")
TAGGED = ("conll", "jsonl", "json")
PACKED = ".gz"
CONLL_TOO = (".txt", ".tsv", ".tab")  # suffixes of files with tags that are text or tables elsewhere
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')


def suffix_of(file: Path) -> str:
    """What the name ends in, in lower case; that of what is packed where it is."""
    return Path(file.name.lower().removesuffix(PACKED)).suffix


def format_of(file: Path, formats: Sequence[str], given: str | None = None, also: Mapping[str, str] | None = None) -> str:
    """One of `formats`. given: the user's word, which the suffix does not matter beside. also: more suffixes with their format.

    Raises InputError, naming what is known, where the format or the suffix is not.
    """
    if given is not None:
        return known_format(given, formats)
    suffixes = {suffix: name for name in formats for suffix in SUFFIXES[name]} | dict(also or {})
    suffix = suffix_of(file)
    if suffix not in suffixes:
        raise InputError(
            f"expected a file that ends in {', '.join(suffixes)}, or one of these and {PACKED}, got {file}: "
            "--format names the format of others"
        )
    return suffixes[suffix]


def known_format(given: str, formats: Sequence[str]) -> str:
    if given not in formats:
        raise InputError(f"expected a format among {', '.join(formats)}, got {given!r}")
    return given


def holds_json(sample: str) -> bool:
    """Whether a file begins with a JSON object, or a list of them."""
    return _JSON.match(sample) is not None
