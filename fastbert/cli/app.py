"""The list of commands. Each is in the file of its group, and imports what it needs when it is called."""

from typing import Annotated

import typer

from fastbert.version import __version__

from . import data, deploy, evaluation, finetuning, inference, pretraining, ranking, scripts, verification
from .errors import CommandGroup

app = typer.Typer(
    help="BERT on hand-written Triton kernels, a drop-in for Hugging Face transformers.",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastbert {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(verification.demo)
app.command()(verification.explain)
app.command()(verification.verify)
app.command()(deploy.tune)
app.command()(data.tokenizer)
app.command()(data.prepare)
app.command()(pretraining.pretrain)
app.command()(pretraining.masks)
app.command()(pretraining.replay)
app.command()(finetuning.finetune)
app.command()(inference.embed)
app.command()(inference.fill_mask)
app.command("next")(inference.next_sentence)
app.command()(inference.classify)
app.command()(inference.tag)
app.command()(inference.answer)
app.command()(ranking.rank)
app.command()(evaluation.evaluate)
app.command()(deploy.export)
app.command(context_settings=scripts.PASS_ARGUMENTS)(scripts.run)
