"""Options and arguments that several commands have."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

CheckpointArgument = Annotated[str, typer.Argument(help="A folder or a hub name of a BERT checkpoint.")]

TextOption = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="UTF-8 text, one per line, instead of the built-in sentences.")
]

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start over where --out exists; it is replaced once the new output is written.")
]


class Precision(str, Enum):
    bf16 = "bf16"
    float32 = "float32"


PrecisionOption = Annotated[Precision | None, typer.Option(help="Default: bf16 on a GPU, float32 on a CPU.")]


def precision_name(precision: Precision | None) -> str:
    """The precision by name: what the option says, else the default of this machine."""
    import torch

    return precision.value if precision else "bf16" if torch.cuda.is_available() else "float32"
