"""The names: all that transformers exports for BERT, seen by type checkers, by `help` and by one changed import."""

import ast
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.models.bert import modeling_bert as hf

import fastbert
import fastbert.modeling_bert

ROOT = Path(__file__).resolve().parents[1]
OWN = (
    "Encoder",
    "accelerate",
    "answer",
    "batch_invariant",
    "classify",
    "clear_cache",
    "compile",
    "dequantize",
    "embed",
    "embed_stream",
    "explain",
    "fill_mask",
    "next_sentence",
    "quantize",
    "rank",
    "register",
    "restore",
    "tag",
    "unregister",
    "use_backend",
    "verify",
)


def exported_for_bert() -> list[str]:
    """The names of the installed transformers' top level that are BERT's, by the modules they come from."""
    modules = transformers._class_to_module
    found = [name for name, module in modules.items() if module.startswith("models.bert.")]
    assert "BertModel" in found, "transformers keeps its names elsewhere"
    return sorted([*found, "BertTokenizerFast"])  # which transformers looks up by its ending


def test_the_public_names():
    assert sorted(fastbert.__all__) == sorted([*exported_for_bert(), *OWN, "__version__"])
    for name in fastbert.__all__:
        assert getattr(fastbert, name) is not None
        assert name in dir(fastbert)
    with pytest.raises(AttributeError, match="no_such_name"):
        fastbert.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", exported_for_bert())
def test_a_name_is_transformers_own_or_a_subclass_of_it(name):
    """So that isinstance and issubclass hold for either library."""
    original, public = getattr(transformers, name), getattr(fastbert, name)
    if original.__module__ == hf.__name__:
        assert issubclass(public, original)
        assert public.__module__.startswith("fastbert.")
    else:
        assert public is original


def test_every_class_of_modeling_bert_is_in_fast():
    classes = {name: value for name, value in vars(hf).items() if inspect.isclass(value) and value.__module__ == hf.__name__}
    assert "BertEncoder" in classes
    assert sorted(fastbert.modeling_bert.__all__) == sorted(classes)
    for name, original in classes.items():
        assert issubclass(getattr(fastbert.modeling_bert, name), original), name
    for name in set(fastbert.__all__) & set(classes):
        assert getattr(fastbert.modeling_bert, name) is getattr(fastbert, name)


def test_a_part_that_the_top_level_lacks_is_an_error_that_says_where_it_is():
    with pytest.raises(AttributeError, match=r"no attribute 'BertPooler'; it is in fastbert\.modeling_bert"):
        fastbert.BertPooler  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'BertNonsense'$"):
        fastbert.BertNonsense  # noqa: B018


def test_type_checkers_see_the_names_of_the_table():
    tree = ast.parse(Path(fastbert.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "without `as` a typed package does not export it"
            seen[alias.name] = statement.module
    assert seen == fastbert._MODULES


# What a user's type checker reads of other packages does not matter here, and takes minutes.
MYPY = """
[mypy]
mypy_path = {root}
explicit_package_bases = true
ignore_missing_imports = true
[mypy-{others}]
follow_imports = skip
"""
OTHERS = (
    "torch",
    "transformers",
    "numpy",
    "triton",
    "safetensors",
    "rich",
    "typer",
    "datasets",
    "accelerate",
    "scipy",
    "sklearn",
)
SNIPPET = """
from fastbert import BertForMaskedLM, BertTokenizerFast, explain
import fastbert
explanation = explain(BertForMaskedLM.from_pretrained("here"))
print(explanation.decisions)
reveal_type(fastbert.explain)
print(fastbert.fill_mask(["a [MASK]"])[0][0][0]["token_str"], fastbert.fill_mask("a [MASK]")[0][0]["token_str"])
print(fastbert.classify(["a"], "m")[0][0]["label"], fastbert.classify(("a", "b"), "m")[0]["label"])
print(fastbert.tag(["a"], "m")[0]["words"], fastbert.tag("a", "m")["words"], fastbert.next_sentence(("a", "b")) + 1.0)
print(fastbert.answer(["q"], ["c"], "m")[0][0]["answer"], fastbert.answer("q", "c", "m")[0]["answer"])
"""


def mypy(folder: Path, code: str) -> list[str]:
    (folder / "mypy.ini").write_text(MYPY.format(root=ROOT, others=",".join(f"{name}.*" for name in OTHERS)))
    (folder / "snippet.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--no-incremental",
        "--no-error-summary",
        "snippet.py",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_type_checker_knows_right_names_from_wrong_ones(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    wrong = "from fastbert import BertForMaskedLanguage\nfastbert.explian\n"
    lines = mypy(tmp_path, SNIPPET + wrong + "from fastbert import *\nembed\n")
    revealed = [line for line in lines if "note: Revealed" in line]
    errors = [line for line in lines if line.startswith("snippet.py") and ": error:" in line]
    assert len(revealed) == 1
    assert "Explanation" in revealed[0]
    assert len(errors) == 2, lines
    assert "BertForMaskedLanguage" in errors[0]
    assert "explian" in errors[1]


def test_help_shows_every_name_with_its_docstring():
    text = pydoc.plain(pydoc.render_doc(fastbert))
    for name in set(fastbert.__all__) - {"__version__"}:
        value = getattr(fastbert, name)
        heading = f"class {value.__name__}(" if inspect.isclass(value) else f"    {name}("
        assert heading in text, name
        assert inspect.getdoc(value), name
    for name in OWN:
        assert inspect.getdoc(getattr(fastbert, name)).splitlines()[0] in text


@pytest.mark.parametrize("name", OWN)
def test_a_function_has_a_real_signature(name):
    """Every parameter is named and typed, and what comes back too: nothing hides behind *args and **kwargs."""
    signature = inspect.signature(getattr(fastbert, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD), parameter


def test_both_ways_to_embed_take_the_same_arguments():
    whole, stream = (inspect.signature(function).parameters for function in (fastbert.embed, fastbert.embed_stream))
    assert [(p.name, p.kind, p.default) for p in stream.values()] == [(p.name, p.kind, p.default) for p in whole.values()]
