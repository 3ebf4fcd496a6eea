"""`fastbert run`: a Python program, unchanged, in which every BERT is fastbert's."""

import os
import runpy
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

PASS_ARGUMENTS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class Padding(str, Enum):
    zeros = "zeros"
    exact = "exact"


def run(
    program: Annotated[str, typer.Argument(help="A Python file, or with -m a module.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="The program's own arguments.", show_default=False)] = None,
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is a module's name, as in python -m.")] = False,
    padding: Annotated[
        Padding | None,
        typer.Option(help="What token states hold at padding; exact is transformers' values.", show_default=False),
    ] = None,
) -> None:
    """Run a Python program, unchanged, with fastbert's BERT in it.

    Every BERT that transformers builds is fastbert's. Options of fastbert come
    before the program.

    On several processes: torchrun -m fastbert run train.py, and the same after
    accelerate launch.
    """
    if not module and not Path(program).is_file():
        raise typer.BadParameter(f"expected a Python file, got {program}, which is no file", param_hint="PROGRAM")
    from fastbert.model.construction import VARIABLE, register

    chosen = None if padding is None else padding.value
    register(padding=chosen)
    os.environ[VARIABLE] = chosen or "1"  # for processes that it starts, once they import fastbert
    values = "transformers' values" if chosen == "exact" else "zeros where its readers respect the mask"
    typer.echo(f"fastbert run: every BERT is fastbert's; at padding, token states hold {values}", err=True)
    sys.argv = [program, *(arguments or [])]
    sys.path.insert(0, os.getcwd() if module else str(Path(program).resolve().parent))
    try:
        if module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except Exception as error:  # the program's own: shown as python shows it, not as an error of fastbert
        sys.excepthook(type(error), error, error.__traceback__)
        raise typer.Exit(1) from error
