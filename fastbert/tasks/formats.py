"""The format of a file: as the user names it, or by its suffix; an unknown suffix is an error, not a guess."""

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
GZIP = ".gz"
CONLL_TOO = (".txt", ".tsv", ".tab")  # for tagging; for other tasks these are text or tables
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')


def suffix_of(file: Path) -> str:
    """The suffix in lower case, before .gz if it is gzipped."""
    return Path(file.name.lower().removesuffix(GZIP)).suffix


def format_of(file: Path, formats: Sequence[str], given: str | None = None, also: Mapping[str, str] | None = None) -> str:
    """One of `formats`.

    given: the user's choice, None for that of the suffix. also: more suffixes with their format. Raises InputError for an
    unknown format or suffix, naming the known ones.
    """
    if given is not None:
        return known_format(given, formats)
    suffixes = {suffix: name for name in formats for suffix in SUFFIXES[name]} | dict(also or {})
    suffix = suffix_of(file)
    if suffix not in suffixes:
        raise InputError(
            f"expected a file that ends in {', '.join(suffixes)}, or one of these and {GZIP}, got {file}: "
            "--format names the format of others"
        )
    return suffixes[suffix]


def known_format(given: str, formats: Sequence[str]) -> str:
    """The given format. Raises InputError where it is none of `formats`."""
    if given not in formats:
        raise InputError(f"expected a format among {', '.join(formats)}, got {given!r}")
    return given


def holds_json(sample: str) -> bool:
    """Whether the start of a file looks like a JSON object, or a list of them."""
    return _JSON.match(sample) is not None
