"""What the commands of inference share: where rows come from, where results go, how progress and notes are shown."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from fastbert.inference.engine import Report, stream
from fastbert.inference.inputs import Kind, Source
from fastbert.inference.outputs import Output, check_name, fingerprint
from fastbert.inference.task import Row, Task
from fastbert.utils.errors import InputError, Resumable
from fastbert.utils.existing_outputs import finished_message
from fastbert.utils.locks import locked_file
from fastbert.version import __version__

from .console import console

# A result as a JSON object; results of a few arguments as a table.
Record = Callable[[Row, Any], dict[str, Any]]
Table = Callable[[list[tuple[Row, Any]]], Any]


def say(line: str) -> None:
    typer.echo(line, err=True)


def pick(
    arguments: Sequence[str],
    kind: Kind,
    file: Path | None,
    fields: Sequence[str] | None,
    format_: str | None,
    header: bool = True,
) -> list[Row] | Source:
    """Rows of the arguments, or the file, or the standard input where there are no arguments and it is no terminal, or '-'.

    kind: of the command; as many arguments as it has roles make a row. The others as of `Source.of`. Raises InputError for a
    mixture or nothing at all.
    """
    values, roles = list(arguments), kind.roles
    if file is not None and values:
        raise InputError(f"expected arguments or --file, got both: {values[0]!r} and {file}")
    if file is not None or values == ["-"] or (not values and not sys.stdin.isatty()):
        return Source.of(file, kind, fields, format_, header=header, say=say)
    if not values or len(values) % len(roles):
        raise InputError(
            f"expected {' and '.join(roles)} as arguments, --file, or text in the standard input, got {len(values)} argument(s)"
        )
    if fields is not None or format_ is not None or not header:
        raise InputError("expected --file or the standard input beside --field, --format or --no-header, got arguments")
    groups = [tuple(values[at : at + len(roles)]) for at in range(0, len(values), len(roles))]
    return [Row(one if len(roles) > 1 else one[0], f"argument {number}") for number, one in enumerate(groups, 1)]


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def run(
    task: Task[Any],
    rows: list[Row] | Source,
    *,
    record: Record,
    table: Table,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    options: dict[str, Any],
    batch_tokens: int | None = None,
    check: Callable[[Row], None] | None = None,
    raw: tuple[Callable[[int], bytes], Callable[[Row, Any], bytes]] | None = None,
) -> None:
    """Runs the rows and shows or writes the results: a table on a terminal for arguments, else JSONL to `out` or to stdout.

    options: what the results depend on, beside input and model; a run that is resumed must have the same. check: raises
    InputError for a bad row; a file is checked whole before anything is written. raw: (header, bytes of a result), what is
    written instead of JSONL. In JSONL, what a row carries is written before its result. Raises InputError for what cannot be
    run or resumed.
    """
    record = _beside(record)
    if out is not None:
        check_name(out, raw is not None)
    if resume and (out is None or not isinstance(rows, Source) or rows.file is None):
        raise InputError("expected --file and --out beside --resume")
    if overwrite and out is None:
        raise InputError("expected --out beside --overwrite")
    with ExitStack() as stack:
        output = None
        if out is not None:
            stack.enter_context(locked_file(out, say))
            # The command first: of two that differ, that is what a user wants to hear.
            identity = {"command": options["command"], "input": _input(rows), "model": _model(task)}
            identity |= {"options": options, "fastbert": __version__}
            header = {} if raw is None else {"header": raw[0]}
            output = Output(out, identity, resume=resume, overwrite=overwrite, **header)
            if output.finished:
                say(f"{finished_message(out)}: {output.rows:,} rows")
                return
        _run(task, rows, record, table, output, batch_tokens, check, None if raw is None else raw[1])


def _run(
    task: Task[Any],
    rows: list[Row] | Source,
    record: Record,
    table: Table,
    output: Output | None,
    batch_tokens: int | None,
    check: Callable[[Row], None] | None,
    to_bytes: Callable[[Row, Any], bytes] | None,
) -> None:
    saved = getattr(task, "saved", None)
    if saved is not None and saved.line:
        say(saved.line)
    total: int | None = len(rows) if isinstance(rows, list) else None
    if isinstance(rows, Source) and rows.file is not None:
        total = 0
        for row in rows:
            total += 1
            if check is not None:
                check(row)
    if output is not None:
        _write(task, rows, total, output, to_bytes or (lambda row, result: _json(record(row, result))), batch_tokens)
    elif isinstance(rows, list) and _is_terminal():
        console().print(table(list(stream(task, rows, batch_tokens=batch_tokens))))
    else:
        with _progress(total, 0, hidden=_is_terminal()) as report:
            results = stream(task, rows, batch_tokens=batch_tokens, report=report)
            _print(record(row, result) for row, result in results)
    for line in task.notes.lines():
        say(f"warning: {line}")


def _beside(record: Record) -> Record:
    """The result of a row, behind what the row carries."""
    return lambda row, result: {**row.carried, **record(row, result)}


def alone(to_bytes: Callable[[Row, Any], bytes], file: Path | None) -> Callable[[Row, Any], bytes]:
    """Says once what rows carry and the file, which has vectors alone, does not hold."""
    told: list[str] = []

    def written(row: Row, result: Any) -> bytes:
        if row.carried and not told:
            told.extend(row.carried)
            say(f"{file}: vectors alone, in the order of the rows; --out FILE.jsonl keeps {', '.join(told)} beside them")
        return to_bytes(row, result)

    return written


def _print(objects: Iterable[dict[str, Any]]) -> None:
    """A reader that has seen enough and closes the pipe, as `head` does, ends it without an error."""
    try:
        for value in objects:
            sys.stdout.buffer.write(_json(value))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own flush fails


def _write(
    task: Task[Any],
    rows: list[Row] | Source,
    total: int | None,
    output: Output,
    to_bytes: Callable[[Row, Any], bytes],
    batch_tokens: int | None,
) -> None:
    first = output.rows
    if first:
        say(f"{output.partial}: continues after row {first:,}")
    output.begin()

    def tell(done: float) -> None:
        output.keep()
        if report is not None:
            report(done)

    try:
        with (
            _progress(total, first) as report,
            closing(stream(task, islice(rows, first, None), batch_tokens=batch_tokens, report=tell)) as results,
        ):
            for row, result in results:
                output.write(to_bytes(row, result))
        output.finish()
    except InputError:
        output.discard()
        raise
    except BaseException as error:
        done = output.rows if output.interrupt() else output.saved_rows
        resumable = isinstance(rows, Source) and rows.file is not None
        advice = f"--resume continues after row {done:,}" if resumable else "--overwrite starts over"
        if isinstance(error, KeyboardInterrupt):
            raise Resumable(f"interrupted; {advice}", 130) from error
        if isinstance(error, OSError):
            raise OSError(f"{error}; {output.partial} is kept, and {advice}") from error
        say(f"fastbert: interrupted; {advice}")
        raise
    say(f"{output.file}: {output.rows:,} rows")


def _input(rows: list[Row] | Source) -> dict[str, Any]:
    if isinstance(rows, list):
        return {"arguments": [row.value for row in rows]}
    described: dict[str, Any] = {"name": rows.name, "format": rows.format, "fields": rows.fields, "header": rows.header}
    return described if rows.file is None else described | {"name": str(rows.file.resolve())} | fingerprint(rows.file)


def _model(task: Task[Any]) -> dict[str, Any]:
    loaded = task.loaded
    described: dict[str, Any] = {"name": loaded.name, "dtype": str(loaded.model.dtype), "device": loaded.device.type}
    folder = Path(loaded.path or "")
    if loaded.path is None or not folder.is_dir():
        return described | {"commit": getattr(loaded.config, "_commit_hash", None)}
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return described | {"name": str(folder.resolve()), "files": {file.name: fingerprint(file) for file in files}}


def _json(value: dict[str, Any]) -> bytes:
    # What a row carries is written as it came: NaN, which Python's JSON has, and half of a surrogate pair too.
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()


@contextmanager
def _progress(total: int | None, first: int, hidden: bool = False) -> Iterator[Report | None]:
    """A bar on stderr with rows/s and the time left; none where that is no terminal, or the results go there too."""
    from rich.console import Console

    screen = Console(stderr=True)
    if hidden or not screen.is_terminal or total == 1:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[done]:,} rows"), BarColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bars:
        bar = bars.add_task("", total=total, completed=first, done=first)
        yield lambda done: bars.update(bar, completed=first + done, done=int(first + done))
