"""Which rows a command of inference reads: its arguments, a file, or the standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from fastbert.inference.inputs import Kind, Source
from fastbert.inference.rows import Row
from fastbert.utils.errors import InputError
from fastbert.utils.printing import number_of


def say(line: str) -> None:
    """Prints on stderr, as results may go to stdout."""
    typer.echo(line, err=True)


def pick_rows(
    arguments: Sequence[str],
    kind: Kind,
    file: Path | None,
    fields: Sequence[str] | None,
    format_: str | None,
    header: bool = True,
) -> list[Row] | Source:
    """The rows of the arguments or of the file; of the standard input for '-', or without either if it is no terminal.

    kind: of the command; as many arguments as it has roles make a row. fields, format_, header: as of `Source.of`. Raises
    InputError for a mixture of sources, or for none.
    """
    values, roles = list(arguments), kind.roles
    if file is not None and values:
        raise InputError(f"expected arguments or --file, got both: {values[0]!r} and {file}")
    if file is not None or values == ["-"] or (not values and not sys.stdin.isatty()):
        return Source.of(file, kind, fields, format_, header=header, say=say)
    if not values or len(values) % len(roles):
        raise InputError(
            f"expected {' and '.join(roles)} as arguments, --file, or text in the standard "
            f"input, got {number_of(len(values), 'argument')}"
        )
    if fields is not None or format_ is not None or not header:
        raise InputError("expected --file or the standard input beside --field, --format or --no-header, got arguments")
    groups = [tuple(values[at : at + len(roles)]) for at in range(0, len(values), len(roles))]
    return [Row(one if len(roles) > 1 else one[0], f"argument {number}") for number, one in enumerate(groups, 1)]
