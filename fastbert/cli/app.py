"""The list of commands. Each is in the file of its group, and imports what it needs when it is called."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from fastbert.version import __version__

from . import data, deploy, evaluation, finetuning, inference, pretraining, ranking, scripts, verification
from .errors import CommandGroup
from .help import CHECK, TRAIN, USE, epilog

app = typer.Typer(
    help="BERT on hand-written Triton kernels, a drop-in for Hugging Face transformers.",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    """From what is installed; importing the libraries would take seconds."""
    if not wanted:
        return
    typer.echo(f"fastbert {__version__}")
    for library in ("torch", "triton", "transformers"):
        try:
            typer.echo(f"{library} {version(library)}")
        except PackageNotFoundError:
            typer.echo(f"{library} is not installed")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of fastbert, torch, triton and transformers, and exit.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    pass


def _add(panel: str, command: Callable[..., Any], name: str | None = None, **settings: Any) -> None:
    name = name or command.__name__.replace("_", "-")
    app.command(name, rich_help_panel=panel, epilog=epilog(name), **settings)(command)


# In the order of `fastbert --help`. The examples of each are in `help`.

_add(USE, inference.embed)
_add(USE, inference.classify)
_add(USE, inference.tag)
_add(USE, inference.answer)
_add(USE, ranking.rank)
_add(USE, inference.fill_mask)
_add(USE, inference.next_sentence, "next")
_add(USE, scripts.run, context_settings=scripts.PASS_ARGUMENTS)
_add(USE, deploy.export)
_add(USE, deploy.tune)

_add(TRAIN, data.tokenizer)
_add(TRAIN, data.prepare)
_add(TRAIN, pretraining.masks)
_add(TRAIN, pretraining.pretrain)
_add(TRAIN, pretraining.replay)
_add(TRAIN, finetuning.finetune)

_add(CHECK, verification.demo)
_add(CHECK, verification.explain)
_add(CHECK, verification.verify)
_add(CHECK, evaluation.evaluate)
