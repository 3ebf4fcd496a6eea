"""What the documentation tells to type exists: commands parse, cheap ones run, and Python runs as it stands."""

import pytest
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app
from tests.docs.command_lines import check
from tests.docs.pages import LANGUAGES, NEEDS, PAGES, RUNS, all_blocks, blocks, name_of

BASH, PYTHON = all_blocks("bash"), all_blocks("python")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, block.name


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.name)
def test_commands_exist_with_their_options(block):
    assert block.commands
    for words in block.commands:
        check(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fastbert embedd", "no command embedd"),
        ("fastbert verify model --txt your.txt", "--txt"),
        ("fastbert finetune klassify --model a --train b --eval c --out d", "klassify is none of"),
        ("fastbert classify --file new.csv", "lacks model"),
        ("fastbert explain a b", "too many words"),
        ("make tests", "no target tests"),
        ("make bench BENCHES=--full", "no BENCHES"),
        ("pip install .[training]", "no extra training"),
        ("python examples/trainer.py --epoch 3 --out a", "--epoch"),
        ("python -m benchmarks.report --readme README.md", "--readme"),
        ("python -m pytest tests/kernel", "no tests/kernel"),
        ("fastbird embed", "fastbird"),
    ],
)
def test_a_wrong_command_is_found(words, said):
    with pytest.raises(AssertionError, match=said):
        check(words.split())


RUNNING = [block for block in BASH if block.note[0] == RUNS]


@pytest.mark.parametrize("block", RUNNING, ids=lambda block: block.name)
def test_cheap_commands_run(block, named_files):
    for words in block.commands:
        assert words[0] == "fastbert"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, (words, done.output, done.exception)
        assert done.output.strip()


def test_some_commands_run():
    assert sum(len(block.commands) for block in RUNNING) >= 4


PYTHON_PAGES = sorted({block.page for block in PYTHON})


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_runs_as_it_stands(page, named_files):
    """The blocks of a page, one after the other, each knowing what those before it defined."""
    names: dict = {"__name__": "page"}
    try:
        for block in PYTHON:
            if block.page == page and block.note[0] != NEEDS:
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
    finally:
        fastbert.unregister()


def test_python_that_does_not_run_says_what_it_needs():
    assert all(block.note[1] for block in PYTHON if block.note[0] == NEEDS)
    assert sum(block.note[0] != NEEDS for block in PYTHON) >= 12
