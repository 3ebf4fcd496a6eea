"""The floors of the code: what a file may import. Imports inside functions count: they are dependencies like any other.

Data flows one way: leaves, shared Triton functions, operations, their public face, then the model, what uses the model, and the
command line on top. A planted import of each forbidden kind shows that the rules are looked at.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEAVES = (
    "kernels.device",
    "kernels.backend",
    "kernels.batch_invariance",
    "kernels.dropout",
    "kernels.registration",
    "kernels.limits",
    "kernels.fp8_format",
    "kernels.attention.schedule",
    "fastbert.version",
)
# Low to high; a module or everything under a package. The first prefix that fits decides.
FLOORS = (
    LEAVES,
    ("kernels.primitives", "kernels.reference"),
    ("kernels.matmul", "kernels.attention", "kernels.layer_norm"),
    ("kernels.embedding", "kernels.linear", "kernels.feed_forward", "kernels.cross_entropy", "kernels.fp8_kernels"),
    ("kernels.functional", "kernels.fp8", "kernels.checks", "fastbert.kernels"),
    ("kernels.specs", "fastbert.utils"),
    ("fastbert.data", "fastbert.tasks", "fastbert.training"),
    ("fastbert.model",),
    ("fastbert.pretraining", "fastbert.finetuning", "fastbert.inference", "fastbert.deploy"),
    ("fastbert.verification",),
    ("fastbert.modeling_bert", "fastbert.cli", "fastbert.__main__"),
    ("benchmarks",),
)
OPERATIONS = 3  # the highest floor of files that hold kernels
APART = 8  # the floor whose packages never import one another
FACE = "fastbert"
FACE_READERS = ("fastbert.cli", "fastbert.verification", "fastbert.__main__", "benchmarks")
# What of kernels/ the rest of the project may import.
OPEN_KERNELS = (
    "kernels.functional",
    "kernels.fp8",
    "kernels.backend",
    "kernels.specs",
    "kernels.device",
    "kernels.limits",
    "kernels.dropout",
    "kernels.batch_invariance",
    "kernels.fp8_format",
    "kernels.attention.schedule",
    # which side and tile computes a product: for `fastbert tune` and `explain`
    "kernels.matmul.choose",
    "kernels.matmul.config",
    "kernels.matmul.keys",
    "kernels.matmul.table",
)
MAX_TOP_ENTRIES = 8  # beside packages, in fastbert/

Sources = dict[str, str]  # module -> source


def is_under(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def floor_of(module: str) -> int:
    for floor, packages in enumerate(FLOORS):
        if is_under(module, *packages):
            return floor
    raise AssertionError(f"{module} has no floor: give it one in FLOORS")


def read_sources() -> Sources:
    sources = {}
    for top in ("kernels", "fastbert", "benchmarks"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return sources


def imports(module: str, source: str, known: Sources, packages: set[str]) -> Iterator[str]:
    """The modules of this project that a file imports, wherever in it; `fastbert.kernels` is both a file and a folder."""
    package = module.split(".") if module in packages else module.split(".")[:-1]
    for level, name in _named(source):
        if level:
            name = ".".join([*package[: len(package) - level + 1], name])
        if name.startswith("fastbert.kernels."):
            inside = name.removeprefix("fastbert.")
            name = inside if _resolve(inside, known) else "fastbert.kernels"
        found = _resolve(name, known)
        if found is not None and found != module:
            yield found


@cache
def _named(source: str) -> tuple[tuple[int, str], ...]:
    """(number of leading dots, dotted name) of everything that a file imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            found += [(node.level, f"{base}{alias.name}") for alias in node.names]
    return tuple(found)


def _resolve(name: str, known: Sources) -> str | None:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def graph_of(sources: Sources) -> dict[str, set[str]]:
    packages = {module.rpartition(".")[0] for module in sources}
    return {module: set(imports(module, source, sources, packages)) for module, source in sources.items() if module != FACE}


def violations(sources: Sources) -> list[str]:
    """Every import that a rule forbids, as one line each."""
    graph = graph_of(sources)
    found = [f"a circle of files: {' -> '.join(circle)}" for circle in circles(graph)]
    for module, targets in sorted(graph.items()):
        here = floor_of(module)
        for target in sorted(targets):
            if target == FACE:
                if not is_under(module, *FACE_READERS):
                    found.append(f"{module} imports the face of the package")
                continue
            there = floor_of(target)
            if there > here:
                found.append(f"{module} (floor {here}) climbs to {target} (floor {there})")
            if here == there == APART and module.split(".")[1] != target.split(".")[1]:
                found.append(f"{module} reaches beside into {target}")
            if module.startswith("kernels.") and here <= OPERATIONS and is_under(target, "kernels.functional", "kernels.specs"):
                found.append(f"the operation {module} imports {target}")
            if not module.startswith("kernels.") and target.startswith("kernels.") and not is_under(target, *OPEN_KERNELS):
                found.append(f"{module} reaches into {target}, which is not open to the rest of the project")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One closed path for every file that depends on itself and was in no path before."""
    found: list[list[str]] = []
    for start in sorted(graph):
        if not any(start in circle for circle in found):
            path = _path_back(start, graph)
            if path is not None:
                found.append(path)
    return found


def _path_back(start: str, graph: dict[str, set[str]]) -> list[str] | None:
    came_from = {target: start for target in graph[start]}
    waiting = list(came_from)
    while waiting:
        module = waiting.pop()
        if module == start:
            path = [start]
            while came_from[path[-1]] != start:
                path.append(came_from[path[-1]])
            return [start, *path[:0:-1], start]
        for target in graph.get(module, ()):
            if target not in came_from:
                came_from[target] = module
                waiting.append(target)
    return None


@pytest.fixture(scope="module")
def sources() -> Sources:
    return read_sources()


@pytest.fixture(scope="module")
def clean(sources) -> set[str]:
    return set(violations(sources))


def test_every_import_goes_down(clean):
    assert not clean


@pytest.mark.parametrize(
    ("module", "planted", "said"),
    [
        ("kernels.device", "from .backend import use_backend", "a circle of files"),
        ("kernels.primitives.gelu", "from ..layer_norm import layer_norm", "climbs to kernels.layer_norm"),
        ("kernels.layer_norm", "from . import functional", "the operation kernels.layer_norm imports kernels.functional"),
        ("kernels.linear", "from .specs.spec import OperationSpec", "the operation kernels.linear imports kernels.specs.spec"),
        ("fastbert.utils.files", "from fastbert.model.bert import BertModel", "climbs to fastbert.model.bert"),
        ("fastbert.model.bert", "from fastbert.kernels.linear import linear", "reaches into kernels.linear"),
        ("fastbert.pretraining.run", "import fastbert.deploy.tune", "reaches beside into fastbert.deploy.tune"),
        ("fastbert.inference.engine", "import fastbert", "imports the face of the package"),
        ("fastbert.deploy.tune", "from fastbert import embed", "imports the face of the package"),
        ("fastbert.verification.compare", "from ..cli.app import app", "climbs to fastbert.cli.app"),
        ("fastbert.deploy.export", "from benchmarks import launch", "climbs to benchmarks.launch"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True], ids=["at the top", "inside a function"])
def test_a_planted_import_is_found(module, planted, said, lazy, sources, clean):
    changed = sources[module] + (f"\n\ndef _planted():\n    {planted}\n" if lazy else f"\n{planted}\n")
    new = set(violations({**sources, module: changed})) - clean
    assert any(said in line for line in new), new


def test_a_new_package_must_be_given_a_floor(sources):
    with pytest.raises(AssertionError, match="fastbert\\.attic\\.old has no floor"):
        violations({**sources, "fastbert.attic.old": "import fastbert.version"})


def test_few_files_stand_at_the_top():
    entries = [entry.name for entry in (ROOT / "fastbert").iterdir() if entry.name not in ("__pycache__", "_kernels")]
    beside = [name for name in entries if not (ROOT / "fastbert" / name / "__init__.py").is_file()]
    assert len(beside) <= MAX_TOP_ENTRIES, sorted(beside)


def test_no_folder_of_kernels_is_a_package_of_its_own():
    """A top-level package `kernels` would hide Hugging Face's from transformers."""
    assert not list((ROOT / "kernels").rglob("__init__.py"))


def test_the_declared_packages_are_those_there_are():
    """What pyproject.toml names by hand is what a wheel will hold."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = set(ast.literal_eval("[" + text.split("packages = [", 1)[1].split("]", 1)[0] + "]"))
    folders = {file.parent for top in ("fastbert", "kernels") for file in (ROOT / top).rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert declared == {name if name.startswith("fastbert") else f"fastbert._{name}" for name in names}


def test_only_kernels_are_laid_out_by_hand():
    """Their signatures and launches, of twenty arguments and more; everything else is as the formatter leaves it."""
    mark = "# fmt: " + "skip"
    files = (file for top in ("fastbert", "benchmarks", "tests") for file in (ROOT / top).rglob("*.py"))
    assert not [str(file.relative_to(ROOT)) for file in files if mark in file.read_text(encoding="utf-8")]
