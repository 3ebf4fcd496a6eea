"""`fastbert tokenizer` and `fastbert prepare`: the commands that make training data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.errors import Resumable
from fastbert.utils.printing import number_of, print_line

from .console import console
from .errors import plain_errors
from .help import DATA, OUTPUT, SPEED
from .options import OverwriteOption

FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...",
        help="FILE.txt (a sentence a line, a blank line between documents), FILE.jsonl, FILE.parquet, or a "
        "data set of the hub: hf:NAME or hf:NAME@CONFIG, then nothing, :SPLIT or :SPLIT:COLUMN.",
    ),
]

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def _progress() -> Iterator[Any]:
    """A `documents.Report` on stderr: a bar with documents/s and the time left, or a line now and then if not a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[documents]:,} documents, {task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        started: dict[str, tuple[Any, float, int]] = {}

        def report(stage: str, done: int, total: int | None, documents: int) -> None:
            if stage not in started:
                for task, _, _ in started.values():
                    bars.update(task, total=1, completed=1)
                started[stage] = bars.add_task(stage, total=total, documents=documents, speed=0.0), time.monotonic(), documents
            task, start, before = started[stage]
            speed = (documents - before) / max(time.monotonic() - start, 1e-3)
            bars.update(task, completed=done, total=total, documents=documents, speed=speed)

        yield report
        for task, _, _ in started.values():
            bars.update(task, total=1, completed=1)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _lines() -> Any:
    """The report as lines."""
    started: dict[str, tuple[float, int]] = {}
    printed = time.monotonic()

    def report(stage: str, done: int, total: int | None, documents: int) -> None:
        nonlocal printed
        now = time.monotonic()
        start, before = started.setdefault(stage, (now, documents))
        if now - printed < SECONDS_BETWEEN_LINES:
            return
        printed = now
        speed = (documents - before) / max(now - start, 1e-3)
        part = f" ({done / total:.0%})" if total else ""
        typer.echo(f"{stage}: {number_of(documents, 'document')}{part}, {speed:,.0f}/s", err=True)

    return report


def tokenizer(
    files: FilesArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the tokenizer.")],
    vocab_size: Annotated[
        int, typer.Option(metavar="ENTRIES", help="Entries, special tokens and characters included.")
    ] = 30522,
    cased: Annotated[bool, typer.Option("--cased/--uncased", help="Keep capitals.")] = False,
    strip_accents: Annotated[
        bool | None,
        typer.Option("--strip-accents/--keep-accents", help="Default: strip if uncased, unless the text is partly Korean."),
    ] = None,
    min_frequency: Annotated[
        int, typer.Option(metavar="TIMES", help="How often a pair to be merged, or a character to be kept, occurs.")
    ] = 2,
    character_coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the text, from 0 to 1, whose characters are kept.")
    ] = 0.9999,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a WordPiece vocabulary and save it as a BERT tokenizer."""
    from fastbert.data.wordpiece import train_wordpiece

    with plain_errors(), _progress() as report:
        found = train_wordpiece(
            files,
            out,
            vocab_size=vocab_size,
            cased=cased,
            strip_accents=strip_accents,
            min_frequency=min_frequency,
            character_coverage=character_coverage,
            overwrite=overwrite,
            report=report,
            say=_say,
        )
    screen = console()
    print_line(
        screen,
        f"{number_of(found['vocab_size'], 'entry', 'entries')} from {number_of(found['documents'], 'document')}, "
        f"{number_of(found['sentences'], 'sentence')}; {number_of(found['characters'], 'character')} kept, "
        f"{number_of(found['characters_left_out'], 'rare one')} left out; "
        f"{'cased' if cased else 'uncased'}, accents {'stripped' if found['strip_accents'] else 'kept'}: {out}",
    )
    if found["vocab_size"] < vocab_size:
        print_line(
            screen,
            f"warning: the text gives {number_of(found['vocab_size'], 'entry', 'entries')}, "
            f"not {vocab_size:,}: nothing left to "
            f"merge occurs {number_of(min_frequency, 'time')}",
        )


def prepare(
    files: FilesArgument,
    tokenizer: Annotated[str, typer.Option(metavar="NAME", help="A folder or hub name of a BERT tokenizer.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write.", rich_help_panel=OUTPUT)],
    seq_len: Annotated[
        int, typer.Option(metavar="TOKENS", help="Most tokens of a sample, [CLS] and [SEP] included.", rich_help_panel=DATA)
    ] = 128,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of all random draws.", rich_help_panel=DATA)] = 0,
    short_seq_prob: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the documents, from 0 to 1, cut into shorter samples.", rich_help_panel=DATA
        ),
    ] = 0.1,
    duplicates: Annotated[
        int, typer.Option(metavar="PASSES", help="Passes over the text, each with other pairs.", rich_help_panel=DATA)
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(metavar="PROCESSES", help="Processes. Default: one for each core.", rich_help_panel=SPEED),
    ] = None,
    shard_samples: Annotated[
        int, typer.Option(metavar="SAMPLES", help="About how many samples a shard has.", rich_help_panel=OUTPUT)
    ] = 65536,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue where the same command was interrupted, to the same bytes; a finished --out is left as it is.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn text into next-sentence pairs for `fastbert pretrain`."""
    from fastbert.data.audit_report import audit_table, audit_warnings
    from fastbert.data.prepare import prepare as run
    from fastbert.data.shards import META
    from fastbert.utils.existing_outputs import finished_message

    was_finished = (out / META).is_file() and not overwrite
    with plain_errors(), _progress() as report:
        try:
            meta = run(
                files,
                tokenizer,
                out,
                seq_len=seq_len,
                seed=seed,
                short_seq_prob=short_seq_prob,
                duplicates=duplicates,
                workers=workers,
                shard_samples=shard_samples,
                resume=resume,
                overwrite=overwrite,
                report=report,
                say=_say,
            )
        except KeyboardInterrupt as error:
            raise Resumable("interrupted; --resume continues from here", 130) from error
    screen = console()
    screen.print(audit_table(meta.audit))
    for warning in audit_warnings(meta.audit):
        print_line(screen, f"warning: {warning}")
    line = finished_message(out) if was_finished else f"{out}: {number_of(len(meta.shards), 'shard')}"
    print_line(screen, line)
