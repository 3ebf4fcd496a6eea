"""For the reference: each argument of a docstring, what it returns and what it raises, as a paragraph of its own.

The docstrings say `name: meaning` in running lines, several to a paragraph; Markdown would make one block of them.
"""

import re

import griffe

# `x, weight: ...`, at the start of a line or after a full stop; and the sentences about what comes back and what fails.
FIELD = re.compile(r"^\s*((?:[a-z_]\w*)(?:, [a-z_]\w*)*): ")
AFTER_STOP = re.compile(r"(?<=[.;)]) (?=(?:[a-z_]\w*)(?:, [a-z_]\w*)*: )")
OPENING = re.compile(r"^(Returns|Raises|Warns|Yields) ")


def paragraphs(docstring: str, names: set[str]) -> str:
    """The docstring with a blank line before each argument among `names` and before what it returns, raises or warns of."""
    lines: list[str] = []
    for line in docstring.splitlines():
        for part in AFTER_STOP.split(line):
            field = FIELD.match(part)
            is_field = field is not None and bool(set(field[1].split(", ")) & names)
            if is_field and field is not None:
                lines += ["", f"**`{field[1]}`**: {part[field.end() :]}"]
            elif OPENING.match(part):
                lines += ["", part]
            elif part is not line and lines and not line.startswith(part):
                lines[-1] += f" {part}"  # the rest of a line whose split was no argument
            else:
                lines.append(part)
    return "\n".join(lines)


class Fields(griffe.Extension):
    """Applies `paragraphs` to every function and class."""

    def on_function(self, *, func: griffe.Function, **kwargs: object) -> None:
        if func.docstring is not None:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = paragraphs(func.docstring.value, names)

    def on_class(self, *, cls: griffe.Class, **kwargs: object) -> None:
        if cls.docstring is not None:
            cls.docstring.value = paragraphs(cls.docstring.value, set(cls.members))
