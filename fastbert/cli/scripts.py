"""`fastbert run`: a Python program, unchanged, in which every BERT that transformers builds is fastbert's.

Python itself runs the program, in the place of this process: what the program sees of `__main__`, signals, tracebacks and its
options is Python's own. `bootstrap/` registers before its first line, in that process and in those that it starts.
"""

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastbert.model.construction import VARIABLE

PASS_ARGUMENTS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
BOOTSTRAP = Path(__file__).resolve().with_name("bootstrap")
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


class Padding(str, Enum):
    zeros = "zeros"
    exact = "exact"


def run(
    program: Annotated[str, typer.Argument(help="A Python file, or with -m a module.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="The program's own arguments.", show_default=False)] = None,
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is a module's name, as in python -m.")] = False,
    padding: Annotated[
        Padding | None,
        typer.Option(
            help="What token states and logits hold at padding: exact, the default, is transformers' values; zeros is faster, "
            "for programs that read them by attention_mask alone.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a Python program, unchanged, with fastbert's BERT in it.

    Every BERT that transformers builds is fastbert's; a class of the program's
    own on BertModel itself stays as it is written. Options of fastbert come
    before the program.

    On several processes: torchrun -m fastbert run train.py, and the same after
    accelerate launch. Python processes that the program starts are served too
    where they inherit its environment (PYTHONPATH, FASTBERT_REGISTER) and Python
    has fastbert.
    """
    if not module and not Path(program).exists():
        raise typer.BadParameter(f"expected a Python file, got {program}, which is no file", param_hint="PROGRAM")
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise ValueError("expected Python without -E, -I and -S, by which it reads no PYTHONPATH or imports no sitecustomize")
    chosen = _choice(padding)
    environment = {
        **os.environ,
        "PYTHONPATH": _python_path(),
        VARIABLE: chosen,
        "FASTBERT_RUN_ANNOUNCEMENT": _announcement(chosen),
    }
    command = [sys.executable, *_interpreter_options(), *(["-m"] if module else []), program, *(arguments or [])]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)


def _choice(padding: Padding | None) -> str:
    """What the variable holds for the program: the option, else what it holds already, else 1."""
    if padding is not None:
        return padding.value
    given = os.environ.get(VARIABLE, "")
    return given if given in set(Padding) else "1"


def _announcement(chosen: str) -> str:
    if chosen == Padding.zeros.value:
        values = "token states and logits hold zeros"
    else:
        values = "token states and logits hold transformers' values (--padding zeros is faster, where nothing reads them)"
    return f"fastbert run: every BERT that transformers builds is fastbert's; at padding, {values}"


def _python_path() -> str:
    """PYTHONPATH with the bootstrap first, and fastbert last where only Python's own first entry, as under -m, leads to it."""
    entries = [str(BOOTSTRAP)]
    if os.environ.get("PYTHONPATH"):
        entries.append(os.environ["PYTHONPATH"])
    reachable = [Path(entry).resolve() == ROOT for entry in sys.path]
    if any(reachable[:1]) and not any(reachable[1:]):
        entries.append(str(ROOT))
    return os.pathsep.join(entries)


def _interpreter_options() -> list[str]:
    """Those of this Python: -X dev, -W error, -u, …"""
    options = list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]  # as multiprocessing does
    return [*options, "-u"] if getattr(sys.stdout, "write_through", False) else options
