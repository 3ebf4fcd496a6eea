"""What `--help` shows: commands and options in panels, examples that can be typed, and nothing cut at 80 columns."""

import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.cli.help import CHECK, TRAIN, USE
from fastbert.cli.pretraining import OptimizerName, Preset

GROUP = typer.main.get_command(app)
NAMES = [one.name for one in app.registered_commands]
WIDE, MANY = 80, 12
FILES = ("texts.txt", "texts.csv", "t.csv", "e.csv", "t.json", "e.json", "t.conll", "e.conll", "train.py")
FILES += ("passages.txt", "test.csv", "test.conll")


def shown(*words: str) -> list[str]:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(WIDE)})
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.output.splitlines()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that examples name."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).write_text("text\n")
    box = Path("run/stopped-at-step-120-process-0")
    box.mkdir(parents=True)
    (box / "black-box.json").write_text("{}")


def test_commands_are_grouped():
    lines = shown()
    headings = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert headings[-3:] == [USE, TRAIN, CHECK]
    listed = {line.split()[1] for line in lines if line.startswith("│ ") and not line.startswith("│  ")}
    assert set(NAMES) <= listed


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shows_examples_that_its_parser_takes(name, files):
    lines = [line.strip() for line in shown(name)]
    found = [line for line in lines if line.startswith("fastbert ")]
    assert found
    for line in found:
        words = shlex.split(line)
        assert words[1] == name
        context = GROUP.get_command(typer.Context(GROUP), name).make_context(name, words[2:])
        assert not context.args or name == "run"


@pytest.mark.parametrize("name", NAMES)
def test_help_is_whole_at_80_columns(name):
    lines = shown(name)
    assert max(map(len, lines)) <= WIDE
    assert not [line for line in lines if "…" in line]
    options = [one for one in GROUP.get_command(typer.Context(GROUP), name).params if one.name != "help"]
    panels = [line for line in lines if line.startswith("╭")]
    assert len(options) < MANY or len(panels) >= 4


def test_an_example_with_an_unknown_option_would_be_found(files):
    command = GROUP.get_command(typer.Context(GROUP), "embed")
    with pytest.raises(Exception, match="No such option"):
        command.make_context("embed", ["--fille", "texts.txt"])


@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [
        ("bash", "fastbert fine", "finetune"),
        ("bash", "fastbert finetune --kee", "--keep-epoch"),
        ("zsh", "fastbert pretrain --config bert-", "bert-medium"),
        ("bash", "fastbert classify --file te", ""),  # nothing, so that the shell completes paths
    ],
)
def test_words_are_completed(shell, words, expected):
    environment = {"_FASTBERT_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment["_TYPER_COMPLETE_ARGS"] = words
    done = CliRunner().invoke(app, [], env=environment, prog_name="fastbert")
    assert expected in done.output
    assert done.output.strip() if expected else not done.output.strip()


def test_the_script_for_bash_falls_back_to_paths():
    done = CliRunner().invoke(app, [], env={"_FASTBERT_COMPLETE": "source_bash"}, prog_name="fastbert")
    assert "complete -o default -F" in done.output


def test_names_of_the_command_line_are_those_of_the_recipes():
    from fastbert.pretraining.recipe import OPTIMIZERS, PRESETS

    assert {one.value for one in Preset} == set(PRESETS)
    assert {one.value for one in OptimizerName} == set(OPTIMIZERS)
