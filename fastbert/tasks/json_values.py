"""JSON of any size, read one object at a time: a list of objects, an object with a list "data", or a series of objects."""

import json
from collections.abc import Iterator
from typing import Any

from fastbert.utils.errors import InputError

MAX_VALUE = 1 << 28  # characters of one object
LIST = "data"
_BLANKS = " \t\n\r"
_decoder = json.JSONDecoder()


def json_objects(pieces: Iterator[str], name: str) -> Iterator[tuple[dict[str, Any], str, int]]:
    """(object, "element" or "line", its number from 1).

    pieces: the text, in pieces of any length. name: of the file, for messages. Raises InputError for text that is not JSON, and
    for JSON other than objects.
    """
    text = _Text(pieces, name)
    first = text.peek()
    if first == "[":
        yield from _elements(text)
    elif first == "{":
        line = text.line
        plain = yield from _data_of(text)
        if plain is not None:
            if not text.peek():
                _refuse_columns(plain, name)
            yield plain, "line", line
            while text.peek():
                line = text.line
                yield _object(text.value(), "line", line, name), "line", line
    elif first:
        raise text.error("a list of objects, or objects", repr(first))
    if text.peek():
        raise text.error("the end of the file", repr(text.peek()))


def parse(line: str, number: int, name: str) -> dict[str, Any]:
    """The object on a line. Raises InputError where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        got = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"expected a JSON object, got {got} in line {number} of {name}") from error
    return _object(value, "line", number, name)


def _object(value: Any, unit: str, number: int, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, got {type(value).__name__} in {unit} {number} of {name}")
    return value


def _elements(text: "_Text") -> Iterator[tuple[dict[str, Any], str, int]]:
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
        number += 1
        yield _object(text.value(), "element", number, text.name), "element", number
    text.take("]")


def _data_of(text: "_Text") -> Any:
    """Yields the elements of the object's list "data"; returns the object where it has no such list, else None."""
    values: dict[str, Any] = {}
    found = past_first = False
    text.take("{")
    while text.peek() != "}":
        if past_first:
            text.take(",")
        past_first = True
        if text.peek() != '"':
            raise text.error("the name of a value in quotes", repr(text.peek()))
        key = text.value()
        text.take(":")
        if key == LIST and text.peek() == "[":
            found = True
            yield from _elements(text)
        else:
            values[key] = text.value()
    text.take("}")
    return None if found else values


def _refuse_columns(values: dict[str, Any], name: str) -> None:
    """Raises InputError where the only object of a file is a table by columns, rather than a row."""
    for kind in (list, dict):
        if values and all(isinstance(value, kind) for value in values.values()):
            raise InputError(
                f'expected a list of objects, one with a list "{LIST}", or an object a line, got an object of columns '
                f'({", ".join(values)}) in {name}: pandas writes a list with to_json(orient="records")'
            )


class _Text:
    """Text read in pieces, of which only the current value is kept. line: of the next character, from 1."""

    def __init__(self, pieces: Iterator[str], name: str) -> None:
        self.name, self.line = name, 1
        self._pieces, self._text, self._at = pieces, "", 0

    def peek(self) -> str:
        """The next character after blanks, '' at the end."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in _BLANKS:
                at += 1
            self._go(at)
            if at < len(self._text):
                return self._text[at]
            if not self._more(1):
                return ""

    def take(self, character: str) -> None:
        """Skips the next character. Raises InputError where it is another."""
        if self.peek() != character:
            raise self.error(repr(character), repr(self.peek()) if self.peek() else "the end")
        self._go(self._at + 1)

    def value(self) -> Any:
        """Reads the next JSON value. Raises InputError where there is none."""
        self.peek()
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:  # perhaps because the rest is not read yet
                kept = len(self._text) - self._at
                if kept > MAX_VALUE:
                    raise self.error(f"values of at most {MAX_VALUE} characters", "a longer one") from error
                if self._more(kept):
                    continue
                self._go(min(error.pos, len(self._text)))
                raise self.error("JSON", error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.error("JSON", str(error)) from error
            if end == len(self._text) and self._more(1):  # a number may continue
                continue
            self._go(end)
            return value

    def error(self, expected: str, got: str) -> InputError:
        return InputError(f"expected {expected}, got {got} in line {self.line} of {self.name}")

    def _go(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def _more(self, count: int) -> bool:
        """Reads at least `count` more characters, and whether there were any. The caller doubles `count` for a long value."""
        found, size = [], 0
        while size < count and (piece := next(self._pieces, None)) is not None:
            found.append(piece)
            size += len(piece)
        if not found:
            return False
        self._text, self._at = "".join([self._text[self._at :], *found]), 0
        return True
