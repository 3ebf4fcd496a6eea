"""What commands share: where they print, how a user's mistake looks, and how the precision is chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any

import typer


class Precision(str, Enum):
    bf16 = "bf16"
    float32 = "float32"


PrecisionOption = Annotated[Precision | None, typer.Option(help="Default: bf16 on a GPU, float32 on a CPU.")]


def chosen_precision(precision: Precision | None) -> str:
    """The precision by name, the default where none was given."""
    import torch

    return precision.value if precision else "bf16" if torch.cuda.is_available() else "float32"


def console() -> Any:
    """Rich's console; wide enough for the tables where the output is not a terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=120)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user named wrongly is one line and exit status 2; anything else keeps its traceback."""
    from fastbert.kernels.tuned_table import TableError

    from .checkpoints import InputError
    from .data.shards import DataError

    try:
        yield
    except (InputError, DataError, TableError, OSError) as error:
        typer.echo(f"fastbert: {error}", err=True)
        raise typer.Exit(2) from error
