"""`fastbert finetune`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastbert.finetuning.folder import is_started
from fastbert.utils.errors import Resumable
from fastbert.utils.folders import check_folder
from fastbert.utils.locks import refuse_busy_folder
from fastbert.utils.printing import print_line

from .console import console
from .errors import plain_errors
from .help import DATA, FROZEN, MODEL, OUTPUT, TRAINING
from .options import OverwriteOption, PrecisionOption, is_alone, precision_name


class Task(str, Enum):
    classify = "classify"
    pair = "pair"
    qa = "qa"
    tag = "tag"
    choice = "choice"


class Grid(str, Enum):
    paper = "paper"


class Layers(str, Enum):
    embeddings = "embeddings"
    second_to_last = "second-to-last"
    last = "last"
    weighted_sum_last_four = "weighted-sum-last-four"
    concat_last_four = "concat-last-four"
    weighted_sum_all = "weighted-sum-all"


class Head(str, Enum):
    linear = "linear"
    bilstm = "bilstm"


class KeptEpoch(str, Enum):
    best = "best"
    last = "last"


class Pooling(str, Enum):
    mean = "mean"
    cls = "cls"


def finetune(
    task: Annotated[
        Task,
        typer.Argument(
            help="classify: one sentence. pair: two, a label or a number. qa: SQuAD 1.1 or 2.0. tag: CoNLL or JSON spans. "
            "choice: which ending fits."
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A folder or a hub name of a BERT checkpoint.", rich_help_panel=MODEL)
    ],
    train: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="To train on: .csv, .tsv, .jsonl, .json, .conll; or .gz of these.",
            rich_help_panel=DATA,
        ),
    ],
    evaluation: Annotated[
        Path,
        typer.Option(
            "--eval",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Examples to score, and to choose by.",
            rich_help_panel=DATA,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder for the model, its report and pictures.", rich_help_panel=OUTPUT),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME",
            help="Again for more; roles: text, pair, label; for choice: prompt, second, choices, label.",
            rich_help_panel=DATA,
        ),
    ] = None,
    header: Annotated[
        bool,
        typer.Option("--header/--no-header", help="The first row of CSV and TSV names the columns.", rich_help_panel=DATA),
    ] = True,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="csv, tsv, jsonl, json or conll, for both files, instead of what their names end in.",
            rich_help_panel=DATA,
        ),
    ] = None,
    regression: Annotated[
        bool | None,
        typer.Option(
            "--regression/--labels",
            help="Labels are numbers (pair). Default: if some have fractions.",
            rich_help_panel=DATA,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=8,
            help="Tokens of an input or window. Default: 512, or 384 for qa.",
            rich_help_panel=DATA,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=0, help="Tokens that windows share (qa, tag). Default: 128.", rich_help_panel=DATA),
    ] = None,
    max_answer_length: Annotated[
        int, typer.Option(metavar="TOKENS", min=1, help="Tokens of an answer (qa).", rich_help_panel=DATA)
    ] = 30,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="EXAMPLES",
            min=1,
            help="Examples, or windows, of a step, over all processes.",
            rich_help_panel=TRAINING,
        ),
    ] = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="At the end of the warm-up; then it falls linearly to 0. Default: 5e-5, or 1e-3 with --frozen.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(metavar="EPOCHS", help="Passes over the training data.", rich_help_panel=TRAINING)
    ] = 3.0,
    warmup: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Share of the steps.", rich_help_panel=TRAINING),
    ] = 0.1,
    dropout: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.0, max=0.99, help="Of hidden states, attention and the head.", rich_help_panel=TRAINING
        ),
    ] = 0.1,
    weight_decay: Annotated[
        float,
        typer.Option(metavar="RATE", min=0.0, help="Of all weights but biases and layer norms.", rich_help_panel=TRAINING),
    ] = 0.01,
    seed: Annotated[
        int,
        typer.Option(metavar="NUMBER", min=0, help="Of the head, the order and dropout.", rich_help_panel=TRAINING),
    ] = 0,
    grid: Annotated[
        Grid | None,
        typer.Option(
            help="paper: batch size 16, 32; learning rate 5e-5, 4e-5, 3e-5, 2e-5; 2, 3, 4 epochs; the best is kept.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(metavar="RUNS", min=1, help="Runs of every setting, with seeds from --seed on.", rich_help_panel=TRAINING),
    ] = 1,
    keep_epoch: Annotated[
        KeptEpoch,
        typer.Option(
            help="Whose weights are kept: of the epoch that scores best on --eval, or of the last one.",
            rich_help_panel=OUTPUT,
        ),
    ] = KeptEpoch.best,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue where the same command was stopped or killed: from the last checkpoint, with the best epoch so far; "
            "finished runs of --grid and --seeds are not repeated. A finished --out is left as it is.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    frozen: Annotated[
        Layers | None,
        typer.Option(
            metavar="LAYERS",
            help=f"{', '.join(one.value for one in Layers)}: of these layers, computed once, only a head is trained, and the "
            "encoder is not.",
            rich_help_panel=FROZEN,
        ),
    ] = None,
    head: Annotated[
        Head | None,
        typer.Option(
            help="With --frozen: linear, or a two-layer BiLSTM over the tokens. Default: linear.", rich_help_panel=FROZEN
        ),
    ] = None,
    lstm_size: Annotated[
        int | None,
        typer.Option(
            metavar="DIMENSIONS",
            min=1,
            help="Of each direction of the BiLSTM. Default: the hidden size.",
            rich_help_panel=FROZEN,
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="With --frozen for classify, pair, choice: of tokens to one vector. Default: mean.", rich_help_panel=FROZEN
        ),
    ] = None,
) -> None:
    """Fine-tune BERT for a task from your own files.

    The folder loads in transformers and in `pipeline`.
    """
    columns = dict(one.partition("=")[::2] for one in column or [])
    roles = {"prompt", "second", "choices", "label"} if task is Task.choice else {"text", "pair", "label"}
    if not set(columns) <= roles or not all(columns.values()):
        raise typer.BadParameter(
            f"expected --column ROLE=NAME with a role among {', '.join(sorted(roles))}, got {column}", param_hint="--column"
        )
    if frozen is None and (head or lstm_size or pooling):
        raise typer.BadParameter("expected --frozen LAYERS beside --head, --lstm-size and --pooling, got none")
    rate = learning_rate if learning_rate is not None else 5e-5 if frozen is None else 1e-3
    if not (rate > 0 and epochs > 0):
        raise typer.BadParameter(f"expected a positive learning rate and epochs, got {rate} and {epochs}")
    with plain_errors():
        if is_alone():
            refuse_busy_folder(out)
            is_started(out, resume, overwrite)
            check_folder(model)
    from fastbert.finetuning.data import DataOptions
    from fastbert.finetuning.options import Options, Setting, paper_grid
    from fastbert.finetuning.run import finetune as run
    from fastbert.model.variants.frozen_heads import Frozen
    from fastbert.utils.processes import ending_together

    setting = Setting(batch_size, rate, epochs, seed, warmup, dropout, weight_decay)
    data = DataOptions(train, evaluation, columns, header, max_length, stride, max_answer_length, regression, format_)
    features = None
    if frozen is not None:
        features = Frozen(frozen.value, head.value if head else "linear", pooling.value if pooling else None, lstm_size)
    screen = console()
    if frozen is not None and grid is not None:
        screen.print("note: the paper's learning rates are for the whole model; heads alone usually want higher ones")
    with plain_errors(), ending_together():
        options = Options(
            task=task.value,
            model=model,
            data=data,
            out=out,
            setting=setting,
            grid=paper_grid(setting) if grid else (),
            seeds=seeds,
            precision=precision_name(precision),
            frozen=features,
            keep_epoch=keep_epoch.value,
        )
        try:
            report = run(options, screen, resume=resume, overwrite=overwrite)
        except KeyboardInterrupt as error:
            raise Resumable(f"interrupted; --resume continues with what {out} holds", 130) from error
    values = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items() if value is not None)
    print_line(screen, f"{out}: {values}")
    if report["degenerate"]:
        print_line(screen, f"warning: degenerate: {report['degenerate']}")
