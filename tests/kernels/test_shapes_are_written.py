"""Every load and product in a kernel carries the shape of its result, as a comment on one of the lines of its statement."""

import ast
import io
import re
import textwrap
import tokenize
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
CALLS = re.compile(r"(tl\.(load|dot|dot_scaled)|\w+_desc\.load|load_rows)")
SHAPE = re.compile(r"\[\w.*\]|scalar")


def without_shape(source: str) -> list[str]:
    """The first lines of the statements with such a call and no shape."""
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines, found = source.splitlines(), []
    for statement in ast.walk(ast.parse(source)):
        if not isinstance(statement, ast.stmt):
            continue
        # Of an `if` or a `for` the condition alone: the statements of its body are walked by themselves.
        own = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
        nodes = [node for child in own for node in ast.walk(child)]
        if any(isinstance(node, ast.Call) and CALLS.fullmatch(ast.unparse(node.func)) for node in nodes):
            last = max(child.end_lineno for child in own if isinstance(child, ast.expr))
            if not any(SHAPE.search(comments.get(line, "")) for line in range(statement.lineno, last + 1)):
                found.append(lines[statement.lineno - 1].strip())
    return found


@pytest.mark.parametrize("file", sorted(KERNELS.rglob("*.py")), ids=lambda file: str(file.relative_to(KERNELS)))
def test_every_load_and_product_carries_its_shape(file):
    assert without_shape(file.read_text(encoding="utf-8")) == []


def test_a_missing_shape_is_found():
    source = """
        x = tl.load(x_ptr, mask=mask)  # [BLOCK_M]
        seed = tl.load(seed_ptr)  # scalar
        y = tl.load(y_ptr)  # of the row above
        z = tl.dot(
            x, y
        )  # [BLOCK_M, BLOCK_N]
        if tl.load(flag_ptr):
            acc = tl.dot(x, y, acc)  # [BLOCK_M, BLOCK_N]
            w = w_desc.load([row, 0])
        return load_rows(x_ptr)
    """
    assert sorted(without_shape(textwrap.dedent(source))) == [
        "if tl.load(flag_ptr):",
        "return load_rows(x_ptr)",
        "w = w_desc.load([row, 0])",
        "y = tl.load(y_ptr)  # of the row above",
    ]
