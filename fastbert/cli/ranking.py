"""`fastbert rank`: the rows of a file by how well they answer a query. Nothing is written before the last row is scored."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import refuse_existing_file
from fastbert.utils.folders import check_folder
from fastbert.utils.locks import locked_file, refuse_busy_file
from fastbert.utils.printing import number_of

from .errors import plain_errors
from .inference_options import BatchTokens, Field, File, Format, Header, Long, LongOption, MaxLength, Texts
from .options import OverwriteOption, PrecisionOption, precision_dtype


def rank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What the texts are to answer.")],
    model: Annotated[str, typer.Option(help="A folder or a hub name of a cross-encoder: a BERT checkpoint with one score.")],
    texts: Texts = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many texts, best first. Default: all.")] = None,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write here, not to the standard output: JSONL.")] = None,
    overwrite: OverwriteOption = False,
    long: LongOption = Long.truncate,
    max_length: MaxLength = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Sort texts by how well they answer a query, by a cross-encoder.

    Each result has its rank and the number of its row, both from 1, and the score of sentence-transformers' `rank`.
    """
    from contextlib import nullcontext

    from fastbert.inference import inputs
    from fastbert.inference.rows import Row

    from .inference_rows import pick_rows, say

    with plain_errors():
        rows = pick_rows(texts or [], inputs.RANK, file, field, format_, header)
        _check_out(out, overwrite)
        check_folder(model)
        from fastbert.inference.engine import stream
        from fastbert.inference.ranking import Ranking, best
        from fastbert.utils.files import write_whole

        from .inference_run import is_terminal, json_line, print_objects, progress

        with locked_file(out, say) if out is not None else nullcontext():
            if out is not None:
                refuse_existing_file(out, overwrite)
            task = Ranking(model, long=long.value, max_length=max_length, dtype=precision_dtype(precision))
            if task.line is not None:
                say(task.line)
            total = len(rows) if isinstance(rows, list) else None if rows.file is None else sum(1 for _ in rows)
            pairs = (Row((query, row.value), row.location, row.carried) for row in rows)
            as_table = isinstance(rows, list) and out is None and is_terminal()
            with progress(total, 0, hidden=as_table) as report:
                found = best(stream(task, pairs, batch_tokens=batch_tokens, report=report), top)
            objects = [_object(number, *one) for number, one in enumerate(found, 1)]
            if out is not None:
                write_whole(out, b"".join(map(json_line, objects)))
                say(f"{out}: {number_of(len(objects), 'row')}")
            elif as_table:
                _show(objects)
            else:
                print_objects(objects)
        for line in task.notes.lines():
            say(f"warning: {line}")


def _object(rank: int, place: int, row: Any, score: float) -> dict[str, Any]:
    return {**row.carried, "rank": rank, "score": score, "row": place + 1, "text": row.value[1]}


def _show(objects: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .console import console

    table = Table("rank", "score", "row", "text")
    for column in table.columns[:3]:
        column.justify = "right"
    for one in objects:
        table.add_row(str(one["rank"]), f"{one['score']:.4f}", str(one["row"]), Text(one["text"]))
    console().print(table)


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Raises InputError where nothing may be written to `out`, before a library is loaded."""
    from fastbert.inference.outputs import check_name

    if out is None:
        if overwrite:
            raise InputError("expected --out beside --overwrite")
        return
    check_name(out, False)
    refuse_busy_file(out)
    refuse_existing_file(out, overwrite)
