"""`fastbert evaluate`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.folders import check_folder

from .errors import plain_errors
from .inference_options import BatchTokens
from .options import OverwriteOption, PrecisionOption, precision_dtype
from .report_files import check_report_file, write_report


class Task(str, Enum):
    classify = "classify"
    pair = "pair"
    tag = "tag"
    answer = "answer"
    qa = "qa"


def evaluate(
    task: Annotated[
        Task,
        typer.Argument(
            help="classify: one sentence. pair: two, a label or a number. tag: CoNLL or JSON spans. answer, qa: SQuAD."
        ),
    ],
    model: Annotated[str, typer.Option(help="A folder or a hub name of a BERT checkpoint with a head for the task.")],
    file: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="Labelled: .csv, .tsv, .jsonl, .json, .conll, as for `finetune`; or .gz of these."
        ),
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="ROLE=NAME, again for more; roles: text, pair, label (classify, pair).")
    ] = None,
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="The first row of CSV and TSV names the columns.")
    ] = True,
    format_: Annotated[
        str | None, typer.Option("--format", help="csv, tsv, jsonl, json or conll, instead of what the file's name ends in.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens of an input or window. Default: as it was fine-tuned, else the model's.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the scores to this file as well.")
    ] = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Score a model on a labelled file, as the field does.

    Accuracy, macro F1 and a confusion matrix for labels; seqeval's scores of whole entities for tags; exact match and F1 for
    answers, correlations for numbers. The model answers with the settings it was fine-tuned with.
    """
    roles = ("text", "pair", "label")
    columns = dict(one.partition("=")[::2] for one in column or [])
    if not set(columns) <= set(roles) or not all(columns.values()):
        raise typer.BadParameter(
            f"expected --column ROLE=NAME with a role among {', '.join(roles)}, got {column}", param_hint="--column"
        )
    with plain_errors():
        check_report_file(json_file, overwrite)
        check_folder(model)
        from fastbert.inference.evaluation import LabelledFile
        from fastbert.inference.evaluation import evaluate as run

        from .evaluation_tables import show
        from .inference_rows import say
        from .inference_run import progress

        data = LabelledFile(file, columns, header, format_)
        options: dict[str, Any] = {"max_length": max_length, "batch_tokens": batch_tokens, "dtype": precision_dtype(precision)}
        with progress(None, 0) as report:
            found = run(task.value, model, data, report=report, **options)
        for note in found.notes:
            say(f"{file}: {note}")
        show(found)
        write_report(json_file, {"model": model, "file": str(file), **found.as_dict()})
