"""Options and arguments that several commands have."""

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .help import INPUT, OUTPUT, SPEED

if TYPE_CHECKING:
    import torch

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder or a hub name of a BERT checkpoint.", show_default=False)
]

TextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="UTF-8 text, one per line, instead of the built-in sentences.",
        rich_help_panel=INPUT,
    ),
]

OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Start over where --out exists; it is replaced once the new output is written.",
        rich_help_panel=OUTPUT,
    ),
]


class Precision(str, Enum):
    bf16 = "bf16"
    float32 = "float32"


PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Default: bf16 on a GPU, float32 on a CPU.", rich_help_panel=SPEED)
]


def is_alone() -> bool:
    """Whether this is not one of several processes, which check together, so that one line comes of an error."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def precision_dtype(precision: Precision | None) -> "torch.dtype | None":
    """The dtype of the weights that the option asks for; None for the default of this machine."""
    import torch

    return None if precision is None else {"bf16": torch.bfloat16, "float32": torch.float32}[precision.value]


def precision_name(precision: Precision | None) -> str:
    """The precision by name: what the option says, else the default of this machine."""
    import torch

    return precision.value if precision else "bf16" if torch.cuda.is_available() else "float32"
