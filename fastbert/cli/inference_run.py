"""Runs rows through a task and shows or writes the results, with progress, notes and what --resume needs."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fastbert.inference.engine import Report, stream
from fastbert.inference.inputs import Source
from fastbert.inference.outputs import Output, fingerprint
from fastbert.inference.rows import Row
from fastbert.inference.task import Task
from fastbert.utils.errors import InputError, Resumable
from fastbert.utils.existing_outputs import finished_message
from fastbert.utils.locks import locked_file
from fastbert.utils.printing import number_of
from fastbert.version import __version__

from .console import console
from .inference_destination import Destination
from .inference_results import Form
from .inference_rows import say

ToBytes = Callable[[Row, Any], bytes]


def run(
    task: Task[Any],
    rows: list[Row] | Source,
    form: Form,
    destination: Destination,
    options: dict[str, Any],
    *,
    batch_tokens: int | None = None,
    check: Callable[[Row], None] | None = None,
    raw: tuple[Callable[[int], bytes], ToBytes] | None = None,
) -> None:
    """Runs the rows and shows or writes the results: a table on a terminal for arguments, else JSONL to `out` or to stdout.

    destination: whose `check` has passed. options: what the results depend on, beside input and model; a run that is resumed
    must have the same. check: raises InputError for a bad row; a file is checked whole before anything is written. raw:
    (header, bytes of a result), what is written instead of JSONL. In JSONL, the further columns of a row are written before
    its result. Raises InputError for what cannot be run or resumed.
    """
    out = destination.out
    form = Form(_with_columns(form.to_object), form.to_table)
    with ExitStack() as stack:
        output = None
        if out is not None:
            stack.enter_context(locked_file(out, say))
            # The command comes first: where several things differ, it is what the error names.
            identity = {"command": options["command"], "input": _describe_input(rows), "model": _describe_model(task)}
            identity |= {"options": options, "fastbert": __version__}
            header = {} if raw is None else {"header": raw[0]}
            output = Output(out, identity, resume=destination.resume, overwrite=destination.overwrite, **header)
            if output.finished:
                say(f"{finished_message(out)}: {number_of(output.rows, 'row')}")
                return
        _run(task, rows, form, output, batch_tokens, check, None if raw is None else raw[1])


def _run(
    task: Task[Any],
    rows: list[Row] | Source,
    form: Form,
    output: Output | None,
    batch_tokens: int | None,
    check: Callable[[Row], None] | None,
    to_bytes: ToBytes | None,
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
        _write(
            task, rows, total, output, to_bytes or (lambda row, result: json_line(form.to_object(row, result))), batch_tokens
        )
    elif isinstance(rows, list) and is_terminal():
        console().print(form.to_table(list(stream(task, rows, batch_tokens=batch_tokens))))
    else:
        with progress(total, 0, hidden=is_terminal()) as report:
            results = stream(task, rows, batch_tokens=batch_tokens, report=report)
            print_objects(form.to_object(row, result) for row, result in results)
    for line in task.notes.lines():
        say(f"warning: {line}")


def is_terminal() -> bool:
    return sys.stdout.isatty()


def _with_columns(to_object: Callable[[Row, Any], dict[str, Any]]) -> Callable[[Row, Any], dict[str, Any]]:
    """The further columns of a row before its result."""
    return lambda row, result: {**row.carried, **to_object(row, result)}


def without_columns(to_bytes: ToBytes, file: Path | None) -> ToBytes:
    """Warns once that the further columns of the rows are not written to this file, which holds vectors only."""
    warned = False

    def written(row: Row, result: Any) -> bytes:
        nonlocal warned
        if row.carried and not warned:
            warned = True
            names = ", ".join(row.carried)
            say(f"{file}: vectors alone, in the order of the rows; --out FILE.jsonl keeps {names} beside them")
        return to_bytes(row, result)

    return written


def print_objects(objects: Iterable[dict[str, Any]]) -> None:
    """Prints JSONL. A reader that closes the pipe early, as `head` does, ends it without an error."""
    try:
        for value in objects:
            sys.stdout.buffer.write(json_line(value))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own flush fails


def _write(
    task: Task[Any],
    rows: list[Row] | Source,
    total: int | None,
    output: Output,
    to_bytes: ToBytes,
    batch_tokens: int | None,
) -> None:
    first = output.rows
    if first:
        say(f"{output.partial}: continues after row {first:,}")
    output.begin()

    def save_and_report(done: float) -> None:
        output.keep()
        if report is not None:
            report(done)

    try:
        with (
            progress(total, first) as report,
            closing(stream(task, islice(rows, first, None), batch_tokens=batch_tokens, report=save_and_report)) as results,
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
    say(f"{output.file}: {number_of(output.rows, 'row')}")


def _describe_input(rows: list[Row] | Source) -> dict[str, Any]:
    if isinstance(rows, list):
        return {"arguments": [row.value for row in rows]}
    described: dict[str, Any] = {"name": rows.name, "format": rows.format, "fields": rows.fields, "header": rows.header}
    return described if rows.file is None else described | {"name": str(rows.file.resolve())} | fingerprint(rows.file)


def _describe_model(task: Task[Any]) -> dict[str, Any]:
    loaded = task.loaded
    described: dict[str, Any] = {"name": loaded.name, "dtype": str(loaded.model.dtype), "device": loaded.device.type}
    folder = Path(loaded.path or "")
    if loaded.path is None or not folder.is_dir():
        return described | {"commit": getattr(loaded.config, "_commit_hash", None)}
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return described | {"name": str(folder.resolve()), "files": {file.name: fingerprint(file) for file in files}}


def json_line(value: dict[str, Any]) -> bytes:
    # Columns of the input are written unchanged: NaN, which Python's JSON has, and half of a surrogate pair too.
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()


@contextmanager
def progress(total: int | None, first: int, hidden: bool = False) -> Iterator[Report | None]:
    """A bar on stderr with rows/s and the time left; none where that is no terminal, or the results go there too."""
    from rich.console import Console

    screen = Console(stderr=True)
    if hidden or not screen.is_terminal or total == 1:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("rows: {task.fields[done]:,}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        bar = bars.add_task("", total=total, completed=first, done=first)
        yield lambda done: bars.update(bar, completed=first + done, done=int(first + done))
