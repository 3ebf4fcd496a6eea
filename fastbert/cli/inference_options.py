"""Options and arguments that several commands of inference have."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .help import INPUT, MODEL, OUTPUT, SPEED

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; '-' or nothing reads the standard input, one a line.")
]
RequiredModel = Annotated[
    str,
    typer.Option(metavar="MODEL", help="A folder or a hub name of a BERT checkpoint with this head.", rich_help_panel=MODEL),
]
SmallModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A folder or a hub name of a BERT checkpoint with this head. Default: the small one of this package.",
        rich_help_panel=MODEL,
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        dir_okay=False,
        help="FILE.txt, a text a line, or FILE.csv, .tsv, .jsonl, .json, as fine-tuning reads them; or .gz of these; any size.",
        rich_help_panel=INPUT,
    ),
]
Field = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="The column of the text; for pairs give it twice. Further columns are written beside the results.",
        rich_help_panel=INPUT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="text, csv, tsv, jsonl or json (tag: conll too), instead of what the file's name ends in.",
        rich_help_panel=INPUT,
    ),
]
Header = Annotated[
    bool,
    typer.Option(
        "--header/--no-header",
        help="The first row of CSV and TSV names the columns; else these are 1, 2, ...",
        rich_help_panel=INPUT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, help="Write here, not to the standard output: JSONL.", rich_help_panel=OUTPUT),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue after the last row that the same command wrote to --out; a finished --out is left as it is.",
        rich_help_panel=OUTPUT,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=1,
        help="Tokens of one forward. Default: 4096 on a CPU, 32768 on a GPU.",
        rich_help_panel=SPEED,
    ),
]


class Pooling(str, Enum):
    mean = "mean"
    cls = "cls"
    max = "max"
    mean_sqrt_len_tokens = "mean_sqrt_len_tokens"
    weightedmean = "weightedmean"
    lasttoken = "lasttoken"


class OutputDType(str, Enum):
    float32 = "float32"
    float16 = "float16"


class Long(str, Enum):
    truncate = "truncate"
    error = "error"


MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=3,
        help="Tokens of an input or window. Default: as it was fine-tuned, else the model's.",
        rich_help_panel=INPUT,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=0,
        help="Tokens that windows share. Default: as it was fine-tuned, else 128.",
        rich_help_panel=INPUT,
    ),
]
LongOption = Annotated[
    Long,
    typer.Option("--long", help="A text over the model's limit: cut it and count, or stop.", rich_help_panel=INPUT),
]
