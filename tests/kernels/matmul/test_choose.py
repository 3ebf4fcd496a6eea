"""Who computes a product: measured entries before rules, what is forced before both, and that the choice is carried out."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.device import architecture, dot_precision, pretend
from fastbert.kernels.functional import feed_forward, linear, qkv_linear
from fastbert.kernels.matmul import choose, products
from fastbert.kernels.matmul.choose import RULES, GemmChoice, select_gemm, use_choice, use_gemm
from fastbert.kernels.matmul.config import candidates
from fastbert.kernels.matmul.keys import GEMM_PRODUCTS, OPERATIONS, Entry, Measured, Timed, row_bucket
from fastbert.kernels.specs.products import of_layer
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import forward_backward, random_gradient

CUDA = torch.device("cuda", 0)
CONFIG = candidates("fwd", torch.bfloat16, "ieee", "sm_90")[0]
TILE = CONFIG.name
KEY = ("linear", torch.bfloat16, "ieee", 768, 768, 1024)
BY_TRITON = Entry(Timed("triton", TILE, 41.0), Timed("library", None, 155.2))
BY_LIBRARY = Entry(Timed("library", None, 7.0))


@pytest.fixture
def on_h200(monkeypatch):
    """Choices as on that GPU; set `.entries` to what was measured there."""
    measured = Measured("NVIDIA H200", {})
    monkeypatch.setattr(choose, "measured_on", lambda index, arch: measured)
    choose._select.cache_clear()
    with pretend("sm_90"):
        yield measured
    choose._select.cache_clear()


def test_choices_on_a_gpu_that_need_not_exist():
    def select(operation, M, N, K, dtype=torch.bfloat16, device="cuda"):
        choice = select_gemm(operation, M, N, K, dtype, torch.device(device))
        assert choice.config is None
        return choice.side, choice.reason

    for operation in OPERATIONS:
        side, reason = select(operation, 8192, 3072, 768)
        assert side == ("triton" if operation in ("linear_activation", "dgrad_activation") else "library")
        assert reason.endswith("not yet timed")
        assert select(operation, 8192, 3072, 768, torch.float32)[0] == "library"
        uneven = "Triton would load element by element: N = 3072 and K = 770 are not both multiples of 16"
        assert select(operation, 8192, 3072, 770) == ("library", uneven)
        assert select(operation, 0, 3072, 768) == ("library", "the product is empty")
        assert select(operation, 8, 32, 32, torch.float16, "cpu")[0] == "triton"
        for forced in ("triton", "library"):
            with use_gemm(forced):
                assert select(operation, 8192, 3072, 770) == (forced, "forced")
    assert not RULES[-1].operations + RULES[-1].dtypes + RULES[-1].architectures, "the last rule must fit everything"
    assert all(set(rule.operations) <= set(OPERATIONS) for rule in RULES)


def test_tf32_float32_takes_the_fused_kernels():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, side in (("ieee", "library"), ("tf32", "triton")):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert dot_precision(torch.float32, "sm_90") == precision
            with pretend("sm_90"):
                assert select_gemm("linear_activation", 8192, 3072, 768, torch.float32, torch.device("cuda")).side == side
        assert dot_precision(torch.float32, "gfx90a") == "ieee"
        assert dot_precision(torch.float16, "sm_90") == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_rejects_unknown_choices():
    with pytest.raises(ValueError, match=r"expected an operation among linear, .*got 'conv'"):
        select_gemm("conv", 1, 1, 1, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="must be 'auto', 'triton' or 'library', got 'cublas'"), use_gemm("cublas"):
        pass


def test_what_was_measured_decides_before_the_rules(on_h200):
    on_h200.entries.update({KEY: BY_TRITON, (*KEY[:-1], 64): BY_LIBRARY})
    expected = f"measured on NVIDIA H200 at 1024 rows: 41.0 us with tile {TILE} against the library's 155 us"
    for M in (725, 1024, 1448):  # whose power of two is 1024
        assert select_gemm("linear", M, 768, 768, torch.bfloat16, CUDA) == GemmChoice("triton", expected, CONFIG)
    alone = select_gemm("linear", 64, 768, 768, torch.bfloat16, CUDA)
    assert alone.reason.endswith("7.0 us; the other side gave no right result")
    for other in (
        ("linear", 724, 768, 768, torch.bfloat16),
        ("linear", 1024, 768, 768, torch.float16),
        ("dgrad", 1024, 768, 768, torch.bfloat16),
        ("linear", 1024, 768, 3072, torch.bfloat16),
    ):
        assert select_gemm(*other, CUDA).reason.endswith("not yet timed")


def test_what_is_forced_comes_before_what_was_measured(on_h200):
    on_h200.entries[KEY] = BY_TRITON
    arguments = ("linear", 1024, 768, 768, torch.bfloat16, CUDA)
    with use_gemm("library"):
        assert select_gemm(*arguments) == GemmChoice("library", "forced")
    with use_gemm("triton"):
        assert select_gemm(*arguments) == GemmChoice("triton", "forced")
    with batch_invariant_kernels():
        choice = select_gemm(*arguments)
        assert (choice.side, choice.config) == ("triton", None)
        assert choice.reason.startswith("batch-invariant mode")
    assert select_gemm(*arguments).config == CONFIG


def test_a_cpu_never_looks_for_a_table(monkeypatch):
    def looked(*_):
        raise AssertionError("a table was looked for")

    monkeypatch.setattr(choose, "measured_on", looked)
    for operation in OPERATIONS:
        select_gemm(operation, 8, 32, 32, torch.float32, torch.device("cpu"))


def test_a_gpu_that_is_not_there_has_no_table():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose._measured(CUDA, "sm_90") is None


def test_rows_go_to_the_nearest_power_of_two():
    for M in (1, 2, 3, 5, 6, 90, 91, 127, 128, 181, 182, 65535, 10**6):
        below = 1 << (M.bit_length() - 1)
        assert row_bucket(M) == (below if M / below < 2 * below / M else 2 * below), M


def test_the_measured_tile_reaches_the_launcher(device, monkeypatch):
    seen = []
    for launcher in ("gemm_fwd", "gemm_dgrad", "gemm_wgrad"):
        original = getattr(products, launcher)

        def spy(*args, config=None, original=original, **options):
            seen.append(config)
            return original(*args, config=config, **options)

        monkeypatch.setattr(products, launcher, spy)
    layer = of_layer(16, 32, "gelu_erf", training=True)
    assert {product.operation for product in layer} == set(OPERATIONS)
    for product in {product.operation: product for product in layer}.values():
        config = candidates(GEMM_PRODUCTS[product.operation], torch.float16, "ieee", architecture(device))[0]
        seen.clear()
        with use_choice(GemmChoice("triton", "measured", config)):
            product.run(product.operands(8, torch.float16, device, torch.Generator(device)))
        assert seen == [config], product


def test_a_measured_tile_that_cannot_read_the_tensors_is_left_to_the_rules(on_h200, monkeypatch):
    """Some tiles want aligned rows; the table knows shapes only."""
    on_h200.entries[KEY] = BY_TRITON
    x, weight = torch.zeros(1024, 768, dtype=torch.bfloat16), torch.zeros(768, 768, dtype=torch.bfloat16)
    shape = (1024, 768, 768, x.dtype, CUDA)
    assert select_gemm("linear", *shape, x, (weight,)).config is CONFIG
    monkeypatch.setattr(choose, "unsupported_reason", lambda config, x, weights: "rows are not aligned")
    choice = select_gemm("linear", *shape, x, (weight,))
    assert (choice.side, choice.config) == ("triton", None)
    assert choice.reason.endswith("155 us; not this tile here: rows are not aligned")
    assert select_gemm("linear", *shape).config is CONFIG


def test_a_measured_tile_that_would_read_element_by_element_is_not_taken(on_h200):
    on_h200.entries["linear", torch.bfloat16, "ieee", 770, 768, 1024] = BY_TRITON
    choice = select_gemm("linear", 1024, 770, 768, torch.bfloat16, CUDA)
    assert (choice.side, choice.config) == ("triton", None)
    assert choice.reason.endswith(
        "not this tile: Triton would load element by element: N = 770 and K = 768 are not both multiples of 16"
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_tile_to_be_timed_is_the_one_that_runs(operation, monkeypatch):
    """At the hidden size of a TinyBERT, which is a multiple of 8 and no more."""
    seen = []
    for launcher in ("gemm_fwd", "gemm_dgrad", "gemm_wgrad"):
        found = torch.zeros(1) if launcher == "gemm_wgrad" else (None, None, None)
        monkeypatch.setattr(products, launcher, lambda *args, config, found=found, **options: seen.append(config) or found)
    for hidden in (312, 320):
        one = next(one for one in of_layer(hidden, 1200, "gelu_erf", training=True) if one.operation == operation)
        one = replace(one, with_bias=False)
        operands = one.operands(8, torch.bfloat16, torch.device("cpu"), torch.Generator())
        with pretend("sm_90"):
            tiles = one.tiles(operands)
            for tile in tiles:
                seen.clear()
                with use_choice(GemmChoice("triton", "being measured", tile)):
                    one.run(operands)
                assert seen == [tile]
        assert tiles
        assert all(tile.suits(one.N, one.K) for tile in tiles)
        assert (len(tiles) > 1) == (hidden == 320 or operation in ("linear", "linear_activation"))


def test_every_operation_goes_where_it_is_sent(device, monkeypatch):
    """The forced side computes, for each operation of the table; the other one is not called."""
    asked, launched = set(), []

    def spy(name, note):
        original = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *args, **kw: (note(name, args), original(*args, **kw))[1])

    spy("select_gemm", lambda name, args: asked.add(args[0]))
    for launcher in ("gemm_fwd", "gemm_dgrad", "gemm_wgrad"):
        spy(launcher, lambda name, args: launched.append(name))
    g = generator()
    x, w, b, w_out = (normal(shape, torch.float32, device, g, std=0.5) for shape in ((9, 16), (24, 16), (24,), (16, 24)))
    for side, launches in (("triton", 12), ("library", 0)):
        asked.clear(), launched.clear()
        with use_gemm(side):
            forward_backward(linear, dict(x=x, weight=w, bias=b), ("x", "weight", "bias"), None, random_gradient)
            forward_backward(
                qkv_linear, dict(x=x, weights=(w,) * 3, biases=(b,) * 3), ("x", "weights", "biases"), None, random_gradient
            )
            inputs = dict(x=x, weight_in=w, bias_in=b, weight_out=w_out)
            forward_backward(feed_forward, inputs, tuple(inputs), None, random_gradient)
        assert asked == set(OPERATIONS)
        assert len(launched) == launches, launched


# Nothing is searched at start-up: tiles come from the table or from rules, so the first call of a process is like the last.


def test_no_kernel_searches_for_its_configuration():
    for file in sorted(Path(choose.__file__).parent.glob("*.py")):
        names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"autotune", "heuristics", "Autotuner", "Heuristics", "do_bench"}, file
