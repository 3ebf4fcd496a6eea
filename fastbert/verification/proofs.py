"""Where each operation's kernels were proved before: a record that ships with them, and whether it is of these sources.

`pytest tests/compiled --compiled=sm_90 --full --record-proofs` writes it, where the whole run ends: the kernels ran there as
PTX, instruction by instruction, and every result was judged by the rule of `fastbert.kernels.specs.accuracy`. Samples run by
the emulator's usual schedule; the late one is the matter of tests/compiled/test_late_schedule.py, which must pass in that run.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastbert.kernels
from fastbert.kernels.specs import accuracy
from fastbert.kernels.specs.spec import OperationSpec
from fastbert.utils.files import write_whole

FILE = Path(accuracy.__file__).with_name("proofs.json")
KERNELS = Path(fastbert.kernels.__path__[0])


@dataclass(frozen=True)
class Proof:
    """One operation whose kernels all passed on one target.

    target: 'sm_90', whose PTX ran. kinds: of numbers, among bf16, fp16, fp32 and tf32. runs: how many passed, each a sample or
    a tile in one kind. runs_digest: `digest_of_runs` of them. tensors: how many were judged. worst: the largest error, as a
    share of what is allowed. triton: its version, which compiled. sources: `digest_of` the operation.
    """

    operation: str
    target: str
    kinds: tuple[str, ...]
    runs: int
    runs_digest: str
    tensors: int
    worst: float
    triton: str
    sources: str

    @property
    def key(self) -> tuple[str, str]:
        return self.operation, self.target


def read_proofs(file: Path = FILE) -> list[Proof]:
    """The recorded proofs, none where there is no record. Raises ValueError for a file that is not one."""
    if not file.exists():
        return []
    try:
        return [Proof(**entry | {"kinds": tuple(entry["kinds"])}) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: expected a list of proofs, got {error}") from error


def add_proofs(new: Iterable[Proof], failed: Iterable[tuple[str, str]] = (), file: Path = FILE) -> None:
    """Writes them into the record, each in the place of an older one of its operation and target.

    failed: operations and targets whose proofs are taken out.
    """
    proofs = {proof.key: proof for proof in (*read_proofs(file), *new)}
    for key in failed:
        proofs.pop(key, None)
    write_whole(file, json.dumps([asdict(proofs[key]) for key in sorted(proofs)], indent=1) + "\n")


def proved_by(
    proofs: Iterable[Proof], operation: str, kind: str, sources: str, triton: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what proved these sources of one operation in one kind of numbers, what proved earlier ones): each with all its kinds
    and with what compiled it.

    sources, triton: those of this installation.
    """
    of_operation = [proof for proof in proofs if proof.operation == operation and kind in proof.kinds]
    these = [proof for proof in of_operation if proof.sources == sources]
    return _lines(these, triton), _lines([proof for proof in of_operation if proof not in these], triton)


def _lines(proofs: Iterable[Proof], triton: str) -> tuple[str, ...]:
    lines: dict[str, list[str]] = {}
    for proof in proofs:
        version = f"triton {proof.triton}" if proof.triton == triton else f"triton {proof.triton}, here {triton}"
        lines.setdefault(f"in {', '.join(proof.kinds)} ({version})", []).append(proof.target)
    return tuple(f"PTX of {', '.join(targets)} {rest}" for rest, targets in lines.items())


def digest_of_runs(runs: Iterable[tuple[str, str]]) -> str:
    """One number for a set of runs, each the name of a kind of numbers and what ran in it, in any order."""
    return hashlib.sha256(json.dumps(sorted(set(runs))).encode()).hexdigest()[:16]


def digest_of(spec: OperationSpec) -> str:
    """The digest of all code that a proof of an operation speaks of: see `files_proved`. Imports no Triton."""
    return digest(files_proved(spec))


def files_proved(spec: OperationSpec) -> list[Path]:
    """The files of an operation's kernels and their launches, of the public function and its checks, and of what judged them:
    its spec (without what that imports), the reference and the rule. Sorted.
    """
    own = {Path(inspect.getfile(function)).resolve() for function in (spec.function, spec.fuzz)}  # each spec's file has a fuzz
    return sorted({*own, *files_reached([*files_of(spec.function), Path(accuracy.__file__)])})


def files_of(function: Callable[..., Any]) -> list[Path]:
    """The files of kernels/ that a public operation imports when it is called, which are those that hold its kernels, and those
    that its own file imports at its top.

    What the other operations of that file import when called is left out. Raises ValueError for a function that imports none.
    """
    file = Path(inspect.getfile(function)).resolve()
    tree = _parsed(file)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting, called = [function.__name__], set[str]()
    while waiting:  # it, and what it calls of the same file
        name = waiting.pop()
        if name in functions and name not in called:
            called.add(name)
            waiting += [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
    found = [imported for name in called for imported in _imported(functions[name], file)]
    if not found:
        raise ValueError(f"expected {function.__qualname__} to import its kernels, got no import in it")
    return found + [imported for node in tree.body if isinstance(node, ast.ImportFrom) for imported in _imported(node, file)]


def files_reached(files: Iterable[Path]) -> list[Path]:
    """These files of kernels/ and all that they import there, sorted."""
    waiting, found = [file.resolve() for file in files], set[Path]()
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(_parsed(file), file)
    return sorted(found)


def _imported(tree: ast.AST, file: Path) -> list[Path]:
    """The files of kernels/ that a part of one of them imports, which they all do by relative names."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        candidates = (folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names))
        found += [candidate for candidate in candidates if candidate.is_file()]
    return found


def digest(files: Iterable[Path], root: Path = KERNELS) -> str:
    """One number for what the files say to Python: comments, docstrings and layout may change, nothing else."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(root.resolve()).as_posix()} {_meaning(_parsed(file))!r}\n".encode())
    return whole.hexdigest()[:16]


def _parsed(file: Path) -> ast.Module:
    return _parse(file.read_text(encoding="utf-8"))


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _meaning(node: Any) -> Any:
    """A syntax tree as tuples, without docstrings and without the empty fields that later versions of Python add."""
    if isinstance(node, list):
        return [_meaning(one) for one in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if (
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    ):
        fields["body"] = node.body[1:]
    return (
        type(node).__name__,
        *((name, _meaning(value)) for name, value in fields.items() if value is not None and value != []),
    )
