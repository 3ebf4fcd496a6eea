"""`fastbert pretrain`, `fastbert masks` and `fastbert replay`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import console
from .errors import plain_errors
from .options import OverwriteOption, PrecisionOption, precision_name


class Direction(str, Enum):
    both = "both"
    left = "left"
    shallow = "shallow"


def pretrain(
    data: Annotated[list[Path], typer.Option(help="A folder of `fastbert prepare`; again for a further phase.")],
    steps: Annotated[list[int], typer.Option(min=1, help="Steps on that folder, one number per --data.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, curves and logs.")],
    config: Annotated[str, typer.Option(help="bert-base, bert-large or a BertConfig as JSON.")] = "bert-base",
    held_out: Annotated[Path | None, typer.Option(help="A folder of `fastbert prepare` to evaluate on.")] = None,
    held_out_samples: Annotated[int, typer.Option(min=1, help="Samples of it to use, from the first.")] = 2000,
    direction: Annotated[
        Direction,
        typer.Option(
            help="both: BERT, masked tokens. left: a left-to-right language model (GPT-like). shallow: two language models of "
            "half the width, one in each direction (ELMo-like)."
        ),
    ] = Direction.both,
    next_sentence: Annotated[
        bool, typer.Option("--next-sentence/--no-next-sentence", help="Whether to predict the next sentence as well.")
    ] = True,
    preset: Annotated[str, typer.Option(help="modern or google-2018; prints what differs.")] = "modern",
    learning_rate: Annotated[
        float | None, typer.Option(help="Instead of the preset's; 5e-4 suits steps of 65536 tokens and more, 1e-4 a quarter.")
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(min=0, help="Instead of the preset's.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adam-no-bias-correction or lamb, instead of the preset's.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Real tokens of one step, over all processes.")] = 32768,
    micro_batch_tokens: Annotated[int, typer.Option(min=1, help="Real tokens of one forward of one process.")] = 8192,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Predict all pieces of a word together.")] = False,
    max_predictions: Annotated[int | None, typer.Option(min=1, help="At most so many predictions per sample.")] = None,
    precision: PrecisionOption = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, masks and dropout.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 1000,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between readings.")] = 50,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches.")] = 2,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Shard weights and optimizer over the processes (FSDP2), not DDP.")
    ] = False,
    peak_tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="TFLOP/s of one device that mfu counts against; default: measured at the start."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the last whole checkpoint in --out, bit for bit; a finished run is left as it is."
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Pre-train BERT (masked language model and next sentence) from prepared text; every checkpoint loads in transformers."""
    from fastbert.pretraining.options import Options
    from fastbert.pretraining.recipe import PRESETS
    from fastbert.pretraining.run import run

    if len(data) != len(steps):
        raise typer.BadParameter(
            f"expected one --steps per --data, got {len(steps)} for {len(data)} folders", param_hint="--steps"
        )
    if preset not in PRESETS:
        raise typer.BadParameter(f"expected a preset among {', '.join(PRESETS)}, got {preset!r}", param_hint="--preset")
    try:
        recipe = _changed(PRESETS[preset], learning_rate=learning_rate, warmup_steps=warmup_steps, optimizer=optimizer)
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
    data: Annotated[Path, typer.Argument(help="A folder of `fastbert prepare`.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples to mask, from the first.")] = 20000,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Predict all pieces of a word together.")] = False,
    max_predictions: Annotated[int | None, typer.Option(min=1, help="At most so many predictions per sample.")] = None,
) -> None:
    """Mask prepared samples as training would and print the rates that come out."""
    from rich.table import Table
    from transformers import AutoTokenizer

    from fastbert.data.masking import Masker, MaskRates
    from fastbert.data.shards import TOKENIZER, Shards

    with plain_errors():
        shards = Shards(data)
        tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZER)
        masker = Masker.of(tokenizer, whole_words=whole_words, max_predictions=max_predictions, seed=seed)
    rates = MaskRates()
    for number in range(min(samples, len(shards))):
        sample = shards[number]
        rates.add(sample, *masker(sample, number, 0), masker)
    table = Table(title=f"{rates.samples:,} samples, {rates.tokens:,} tokens")
    for name in ("", "tokens", "share"):
        table.add_column(name, justify="right" if name else "left")
    predicted = max(rates.predicted, 1)
    for name, count, whole in (
        ("predicted, of ordinary tokens", rates.predicted, max(rates.maskable, 1)),
        ("became [MASK], of predicted", rates.to_mask, predicted),
        ("became another token", rates.to_random, predicted),
        ("stayed", rates.kept, predicted),
        ("special tokens predicted", rates.special, predicted),
    ):
        table.add_row(name, f"{count:,}", f"{count / whole:.2%}")
    console().print(table)


def replay(
    file: Annotated[Path, typer.Argument(help="The black-box.json of a stopped run.")],
) -> None:
    """Repeat the step that stopped a run and show where the first number that is not finite appears. Status 1 if one does."""
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
