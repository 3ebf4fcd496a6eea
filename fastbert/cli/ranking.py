"""`fastbert rank`: the rows of a file by how well they answer a query. Nothing is written before the last row is scored."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import plain_errors
from .inference_options import BatchTokens, Field, File, Format, Header, Long, LongOption, MaxLength, Texts
from .options import OverwriteOption, Precision, PrecisionOption


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
    from fastbert.inference.engine import stream
    from fastbert.inference.ranking import Ranking, best
    from fastbert.inference.task import Row
    from fastbert.utils.files import write_whole
    from fastbert.utils.locks import locked_file

    from .inference_rows import pick_rows, say
    from .inference_run import _is_terminal, _json_line, _print, _progress

    with plain_errors():
        rows = pick_rows(texts or [], inputs.RANK, file, field, format_, header)
        with locked_file(out, say) if out is not None else nullcontext():
            _check_out(out, overwrite)
            task = Ranking(model, long=long.value, max_length=max_length, dtype=_dtype(precision))
            if task.line is not None:
                say(task.line)
            total = len(rows) if isinstance(rows, list) else None if rows.file is None else sum(1 for _ in rows)
            pairs = (Row((query, row.value), row.location, row.carried) for row in rows)
            as_table = isinstance(rows, list) and out is None and _is_terminal()
            with _progress(total, 0, hidden=as_table) as report:
                found = best(stream(task, pairs, batch_tokens=batch_tokens, report=report), top)
            objects = [_object(number, *one) for number, one in enumerate(found, 1)]
            if out is not None:
                write_whole(out, b"".join(map(_json_line, objects)))
                say(f"{out}: {len(objects):,} rows")
            elif as_table:
                _show(objects)
            else:
                _print(objects)
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
    from fastbert.inference.outputs import check_name
    from fastbert.utils.errors import InputError
    from fastbert.utils.existing_outputs import exists_error

    if out is None:
        if overwrite:
            raise InputError("expected --out beside --overwrite")
        return
    check_name(out, False)
    if out.exists() and not overwrite:
        raise exists_error(out, "exists", resumable=False)


def _dtype(precision: Precision | None) -> Any:
    import torch

    return None if precision is None else {"bf16": torch.bfloat16, "float32": torch.float32}[precision.value]
