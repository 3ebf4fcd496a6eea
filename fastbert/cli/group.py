"""The border between the shell and the commands: one line for every mistake, whichever command and whoever notices it."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from .console import plain_errors

# typer has had two homes for click's exceptions; its own name for this one is the same in both
ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Commands(TyperGroup):
    """All commands: an error of the user's is one line on stderr and status 2, never a traceback."""

    def main(  # type: ignore[override]  # whatever else this version of typer takes is handed on
        self, args: Any = None, prog_name: Any = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            with plain_errors():
                status = super().main(args, prog_name, standalone_mode=False, **extra)
        except typer.Exit as error:
            status = error.exit_code
        except typer.Abort:
            status = 130
        except ClickException as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                context = getattr(error, "ctx", None)
                where = f"; {context.command_path} --help tells more" if context is not None else ""
                typer.echo(f"fastbert: {' '.join(error.format_message().split()).rstrip('.')}{where}", err=True)
            status = error.exit_code
        sys.exit(status or 0)
