"""`fastbert pretrain`, `fastbert masks` and `fastbert replay`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.pretraining.folder import is_started
from fastbert.utils.locks import refuse_busy_folder
from fastbert.utils.printing import number_of
from fastbert.utils.sizes import SIZES, check_size_or_file

from .console import console
from .errors import plain_errors
from .help import DATA, LOG, MODEL, OUTPUT, SPEED, TRAINING
from .options import OverwriteOption, PrecisionOption, is_alone, precision_name


class Direction(str, Enum):
    both = "both"
    left = "left"
    shallow = "shallow"


class Preset(str, Enum):
    """The names of `recipe.PRESETS`."""

    modern = "modern"
    google_2018 = "google-2018"


class OptimizerName(str, Enum):
    """The names of `recipe.OPTIMIZERS`."""

    adamw = "adamw"
    adam_no_bias_correction = "adam-no-bias-correction"
    lamb = "lamb"


def pretrain(
    data: Annotated[
        list[Path],
        typer.Option(metavar="FOLDER", help="A folder of `fastbert prepare`; again for a further phase.", rich_help_panel=DATA),
    ],
    steps: Annotated[
        list[int],
        typer.Option(metavar="STEPS", min=1, help="Steps on that folder, one number per --data.", rich_help_panel=DATA),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for checkpoints, curves and logs.", rich_help_panel=OUTPUT)
    ],
    config: Annotated[
        str,
        typer.Option(
            metavar="SIZE|FILE",
            help=f"{', '.join(SIZES)}, or a BertConfig as JSON.",
            autocompletion=lambda: list(SIZES),
            rich_help_panel=MODEL,
        ),
    ] = "bert-base",
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A folder of `fastbert prepare` to evaluate on.", rich_help_panel=DATA),
    ] = None,
    held_out_samples: Annotated[
        int, typer.Option(metavar="SAMPLES", min=1, help="Samples of it to use, from the first.", rich_help_panel=DATA)
    ] = 2000,
    direction: Annotated[
        Direction,
        typer.Option(
            metavar="NAME",
            help="both: BERT, masked tokens. left: a left-to-right language model (GPT-like). shallow: two language models of "
            "half the width, one in each direction (ELMo-like).",
            rich_help_panel=MODEL,
        ),
    ] = Direction.both,
    next_sentence: Annotated[
        bool,
        typer.Option(
            "--next-sentence/--no-next-sentence",
            help="Whether to predict the next sentence as well.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    preset: Annotated[
        Preset,
        typer.Option(help="The optimizer, its rates and the masks; prints what differs.", rich_help_panel=TRAINING),
    ] = Preset.modern,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Instead of the preset's; 5e-4 suits steps of 65536 tokens and more, 1e-4 a quarter.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(metavar="STEPS", min=0, help="Instead of the preset's.", rich_help_panel=TRAINING)
    ] = None,
    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(one.value for one in OptimizerName)}, instead of the preset's.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Real tokens of one step, over all processes.", rich_help_panel=TRAINING),
    ] = 32768,
    micro_batch_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Real tokens of one forward of one process.", rich_help_panel=SPEED),
    ] = 8192,
    whole_words: Annotated[
        bool, typer.Option("--whole-words", help="Predict all pieces of a word together.", rich_help_panel=TRAINING)
    ] = False,
    max_predictions: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=1, help="At most so many predictions per sample.", rich_help_panel=TRAINING),
    ] = None,
    precision: PrecisionOption = None,
    seed: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, help="Of weights, order, masks and dropout.", rich_help_panel=TRAINING)
    ] = 0,
    save_every: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="Steps between checkpoints.", rich_help_panel=LOG)
    ] = 1000,
    evaluate_every: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="Steps between evaluations.", rich_help_panel=LOG)
    ] = 1000,
    log_every: Annotated[int, typer.Option(metavar="STEPS", min=1, help="Steps between readings.", rich_help_panel=LOG)] = 50,
    keep: Annotated[int, typer.Option(metavar="CHECKPOINTS", min=1, help="Checkpoints to keep.", rich_help_panel=LOG)] = 3,
    workers: Annotated[
        int, typer.Option(metavar="PROCESSES", min=0, help="Processes that make batches.", rich_help_panel=SPEED)
    ] = 2,
    fsdp: Annotated[
        bool,
        typer.Option("--fsdp", help="Shard weights and optimizer over the processes (FSDP2), not DDP.", rich_help_panel=SPEED),
    ] = False,
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            metavar="TFLOP/S",
            min=0.001,
            help="TFLOP/s of one device that mfu counts against. Default: measured at the start.",
            rich_help_panel=LOG,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the last whole checkpoint in --out, bit for bit; a finished run is left as it is.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Pre-train BERT from prepared text: masked words and the next sentence.

    Every checkpoint loads in transformers.
    """
    if len(data) != len(steps):
        raise typer.BadParameter(
            f"expected one --steps per --data, got {len(steps)} for {len(data)} folders", param_hint="--steps"
        )
    if learning_rate is not None and not learning_rate > 0:
        raise typer.BadParameter(f"expected a positive learning rate, got {learning_rate}", param_hint="--learning-rate")
    from fastbert.data.shards import Shards

    with plain_errors():
        if is_alone():
            refuse_busy_folder(out)
            is_started(out, f"checkpoint-{sum(steps)}", resume, overwrite)
            check_size_or_file(config)
            for folder in [*data, *([held_out] if held_out else [])]:
                Shards(folder)
    from fastbert.pretraining.options import Options
    from fastbert.pretraining.recipe import PRESETS
    from fastbert.pretraining.run import run

    try:
        recipe = _changed(
            PRESETS[preset.value],
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            optimizer=optimizer.value if optimizer else None,
        )
        recipe.num_warmup_steps(sum(steps))
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    with plain_errors():
        options = Options(
            data=tuple(data),
            steps=tuple(steps),
            out=out,
            config=config,
            recipe=recipe,
            batch_tokens=batch_tokens,
            micro_batch_tokens=micro_batch_tokens,
            precision=precision_name(precision),
            seed=seed,
            held_out=held_out,
            held_out_samples=held_out_samples,
            whole_words=whole_words,
            max_predictions=max_predictions,
            save_every=save_every,
            evaluate_every=evaluate_every,
            log_every=log_every,
            keep=keep,
            workers=workers,
            fsdp=fsdp,
            peak_tflops=peak_tflops,
            direction=direction.value,
            next_sentence=next_sentence,
        )
        status = run(options, console(), resume=resume, overwrite=overwrite)
    raise typer.Exit(status)


def _changed(recipe: Any, **values: Any) -> Any:
    """The recipe with the values that are not None."""
    from dataclasses import replace

    given = {name: value for name, value in values.items() if value is not None}
    if "warmup_steps" in given:
        given["warmup_ratio"] = None
    return replace(recipe, **given)


def masks(
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of `fastbert prepare`.")],
    samples: Annotated[int, typer.Option(metavar="SAMPLES", min=1, help="Samples to mask, from the first.")] = 20000,
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="Of the masks.")] = 0,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Predict all pieces of a word together.")] = False,
    max_predictions: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="At most so many predictions per sample.")
    ] = None,
) -> None:
    """Mask prepared samples as training would and print the rates."""
    from rich.table import Table

    from fastbert.data.shards import TOKENIZER, Shards

    with plain_errors():
        shards = Shards(data)
        from transformers import AutoTokenizer

        from fastbert.data.masking import Masker, MaskRates

        tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZER)
        masker = Masker.of(tokenizer, whole_words=whole_words, max_predictions=max_predictions, seed=seed)
    rates = MaskRates()
    for number in range(min(samples, len(shards))):
        sample = shards[number]
        rates.add(sample, *masker(sample, number, 0), masker)
    table = Table(title=f"{number_of(rates.samples, 'sample')}, {number_of(rates.tokens, 'token')}")
    for name in ("", "tokens", "share"):
        table.add_column(name, justify="right" if name else "left")
    predicted = max(rates.predicted, 1)
    for name, number, whole in (
        ("predicted, of ordinary tokens", rates.predicted, max(rates.maskable, 1)),
        ("became [MASK], of predicted", rates.to_mask, predicted),
        ("became another token", rates.to_random, predicted),
        ("stayed", rates.kept, predicted),
        ("special tokens predicted", rates.special, predicted),
    ):
        table.add_row(name, f"{number:,}", f"{number / whole:.2%}")
    console().print(table)


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The black-box.json of a stopped run.")
    ],
) -> None:
    """Repeat the step that stopped a run, to find the number that did.

    Shows where the first number that is not finite appears. Exit status 1 if
    one does.
    """
    from rich.table import Table

    from fastbert.pretraining.black_box import first_non_finite, repeat_step

    screen, status = console(), 0
    for modules, title in ((False, "the step as it ran"), (True, "the same, module by module")):
        with plain_errors():
            readings = repeat_step(file, modules=modules)
        bad = first_non_finite(readings)
        table = Table(title=title)
        for name in ("micro-batch", "part", "largest value"):
            table.add_column(name)
        index = len(readings) if bad is None else readings.index(bad)
        for micro_batch, part, value in readings[max(index - 10, 0) : index + 2]:
            table.add_row(str(micro_batch), part, f"{value:.4g}")
        screen.print(table)
        if bad is None:
            screen.print("everything is finite")
        else:
            screen.print(f"[red]first not finite: {bad.part} in micro-batch {bad.micro_batch}[/]")
        status |= bad is not None
    raise typer.Exit(status)
