"""Whether a command of the documentation exists, with the options it is given. Nothing is run."""

import importlib
import inspect
import re
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.main import get_command

from fastbert.cli.app import app
from tests.docs.pages import ROOT
from tests.examples.conftest import example

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OTHERS = ("curl", "diff", "git", "uv")  # not ours
USERS_PROGRAM = "program.py"


def check(words: list[str]) -> None:
    """Raises AssertionError, saying what is wrong with the words of a command."""
    program, rest = words[0], words[1:]
    if program == "fastbert":
        check_click(get_command(app), rest)
    elif program in ("python", "python3"):
        check_python(rest)
    elif program == "torchrun":
        assert rest[rest.index("-m") + 1] == "fastbert", words
        check_click(get_command(app), rest[rest.index("-m") + 2 :])
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        assert rest[0] == "install", words
        check_extras(rest[1:])
    else:
        assert program in OTHERS, f"expected a command that is known here, got {program}: see tests/docs/command_lines.py"


def check_python(words: list[str]) -> None:
    if words[0] != "-m":
        if words[0] == USERS_PROGRAM:
            return
        file = ROOT / words[0]
        assert file.is_file(), f"there is no {words[0]}"
        assert file.parent.name == "examples", words
        if file.stem == "serve":
            pytest.importorskip("fastapi", reason="fastapi is not installed: the options of the server are not looked at")
        check_typer(example(file.stem).main, words[1:])
    elif words[1] == "pytest":
        for word in words[2:]:
            assert word.startswith("-") or (ROOT / word).exists(), f"there is no {word}"
            if word.startswith("--"):
                assert f'"{word.split("=")[0]}"' in (ROOT / "tests" / "conftest.py").read_text() + compiled_options(), word
    elif words[1].startswith("benchmarks"):
        check_typer(importlib.import_module(words[1]).main, words[2:])
    else:
        assert words[1] in ("fastbert", "http.server", "venv"), words


def compiled_options() -> str:
    return (ROOT / "tests" / "compiled" / "conftest.py").read_text(encoding="utf-8")


def check_typer(main: Any, words: list[str]) -> None:
    assert callable(main)
    assert inspect.signature(main)
    of_file = typer.Typer()
    of_file.command()(main)
    check_click(get_command(of_file), words)


def check_click(command: Any, words: list[str]) -> None:
    """Every option exists, every value of a choice is one, and nothing that is required is missing."""
    name = command.name
    while hasattr(command, "commands"):
        if words in (["--version"], ["--help"]):
            return
        name, words = words[0], words[1:]
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    context = command.make_context(name, [], resilient_parsing=True)
    context.resilient_parsing = False  # else unknown options would be passed over
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
    except Exception as error:  # NoSuchOption and others of typer's own click
        raise AssertionError(f"{name}: {getattr(error, 'message', error)}") from error
    choices = choices_of(command.callback)
    for parameter in command.params:
        value = values.get(parameter.name)
        assert not parameter.required or value not in (None, [], ()), f"{name} lacks {parameter.name}"
        allowed = choices.get(parameter.name)
        for one in value if isinstance(value, list | tuple) else [value]:
            assert allowed is None or one is None or one in allowed, f"{name}: {one} is none of {', '.join(allowed or ())}"
    assert not rest or command.context_settings.get("allow_extra_args"), f"{name}: too many words, {rest}"


def choices_of(callback: Any) -> dict[str, list[str]]:
    """The values of every parameter that has a list of them, an Enum."""
    found = {}
    for parameter, hint in get_type_hints(inspect.unwrap(callback)).items():
        for one in (hint, *get_args(hint)):
            if isinstance(one, type) and issubclass(one, Enum):
                found[parameter] = [choice.value for choice in one]
    return found


def check_make(words: list[str]) -> None:
    for word in words:
        variable, _, value = word.partition("=")
        if value:
            assert re.search(rf"^{variable} \?=|\$\({variable}\)", MAKEFILE, re.MULTILINE), f"make knows no {variable}"
        else:
            assert re.search(rf"^{word}:", MAKEFILE, re.MULTILINE), f"make has no target {word}"


def check_extras(words: list[str]) -> None:
    declared = re.findall(r"^(\w+) = \[", PYPROJECT.split("[project.optional-dependencies]")[1], re.MULTILINE)
    for word in words:
        for extra in re.findall(r"\[([\w,]+)\]", word):
            assert set(extra.split(",")) <= set(declared), f"there is no extra {extra}"
