"""`fastbert tune` and `fastbert export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastbert.deploy.export_checks import check_export
from fastbert.deploy.tune_options import DEFAULT_SIZE, ROWS, check_size, parse_rows
from fastbert.utils.folders import check_folder
from fastbert.utils.sizes import SIZES

from .console import console
from .errors import plain_errors
from .options import CheckpointArgument, OverwriteOption


class TunedDType(str, Enum):
    bf16 = "bf16"
    fp16 = "fp16"
    float32 = "float32"
    tf32 = "tf32"


class Format(str, Enum):
    onnx = "onnx"
    torch_export = "torch-export"


def tune(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="A BERT checkpoint whose layer to measure.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=f"{', '.join(SIZES)}, instead of a checkpoint. Default: {DEFAULT_SIZE}.",
            autocompletion=lambda: list(SIZES),
        ),
    ] = None,
    dtype: Annotated[TunedDType, typer.Option(help="Of the products.")] = TunedDType.bf16,
    rows: Annotated[
        str | None,
        typer.Option(metavar="TOKENS,...", help="Tokens of a batch: powers of two, with commas. Default: 64 to 32768."),
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="The products of the backward as well.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table. Default: $FASTBERT_TUNED, else one in ~/.cache.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="TIMES", min=1, help="How often each candidate is timed.")] = 25,
    again: Annotated[bool, typer.Option("--again", help="Measure what the table already has too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only print what the table says.")] = False,
) -> None:
    """Measure on this GPU what computes every matrix product fastest.

    Which implementation and tile that is, is kept for later runs.

    Exit status 0 if every candidate ran and was right, 1 if one was left out,
    2 without a GPU.
    """
    with plain_errors():
        check_size(checkpoint, config)
        if checkpoint is not None:
            check_folder(checkpoint, weights=False)  # only its sizes matter
        wanted = ROWS if rows is None else parse_rows(rows)
        from fastbert.deploy import tune as tuning

        if check:
            tuning.print_table(out, console())
            return
        complete = tuning.run_tune(
            checkpoint,
            config,
            dtype=dtype.value,
            rows=wanted,
            training=training,
            file=out,
            rounds=rounds,
            again=again,
            console=console(),
        )
    raise typer.Exit(0 if complete else 1)


def export(
    checkpoint: CheckpointArgument,
    to: Annotated[Format, typer.Option(help="onnx: for ONNX Runtime and others. torch-export: for torch.export.load.")],
    out: Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="The file to write; of torch-export FILE.pt2.")],
    overwrite: OverwriteOption = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the export with transformers; one that differs is not written.")
    ] = True,
) -> None:
    """Export a checkpoint to ONNX or torch.export.

    The file is checked against transformers; exit status 1 if that fails.
    """
    from fastbert.utils.locks import locked_file

    with plain_errors():
        check_export(to.value, out, overwrite)
        check_folder(checkpoint)
        with locked_file(out, typer.echo):
            from fastbert.deploy.export import export_checkpoint

            passed = export_checkpoint(checkpoint, to.value, out, check=check, overwrite=overwrite, say=typer.echo)
    raise typer.Exit(0 if passed else 1)
