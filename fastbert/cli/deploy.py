"""`fastbert tune` and `fastbert export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

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
    checkpoint: Annotated[str | None, typer.Argument(help="A BERT checkpoint whose layer to measure.")] = None,
    config: Annotated[str | None, typer.Option(help="bert-base (the default) or bert-large, instead of one.")] = None,
    dtype: Annotated[TunedDType, typer.Option(help="Of the products.")] = TunedDType.bf16,
    rows: Annotated[
        str | None, typer.Option(help="Tokens of a batch: powers of two, with commas. Default: 64 to 32768.")
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="The products of the backward as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="The table. Default: $FASTBERT_TUNED, else one in ~/.cache.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each candidate is timed.")] = 25,
    again: Annotated[bool, typer.Option("--again", help="Measure what the table already has too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only print what the table says.")] = False,
) -> None:
    """Measure on this GPU which implementation and tile is fastest for every matrix product, and keep it for later runs.

    Exit status 0 if every candidate ran and was right, 1 if one was left out, 2 without a GPU.
    """
    from fastbert.deploy import tune as tuning

    with plain_errors():
        if check:
            tuning.print_table(out, console())
            return
        complete = tuning.run_tune(
            checkpoint,
            config,
            dtype=dtype.value,
            rows=tuning.ROWS if rows is None else tuning.parse_rows(rows),
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
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write; of torch-export FILE.pt2.")],
    overwrite: OverwriteOption = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the export with transformers; one that differs is not written.")
    ] = True,
) -> None:
    """Export a checkpoint to ONNX or torch.export, and check the file against transformers. Exit status 1 if that fails."""
    from fastbert.deploy.export import export_checkpoint
    from fastbert.utils.locks import locked_file

    with plain_errors(), locked_file(out, typer.echo):
        passed = export_checkpoint(checkpoint, to.value, out, check=check, overwrite=overwrite, say=typer.echo)
    raise typer.Exit(0 if passed else 1)
