"""The linear layers and the feed-forward: sides, layouts, gradients, limits.

The float64 comparisons of every sample are in test_specs.py, who computes a product in matmul/test_choose.py.
"""

import functools
import mmap

import pytest
import torch
import triton
import triton.language as tl

from fastbert.kernels.feed_forward import feed_forward_bwd, feed_forward_fwd
from fastbert.kernels.functional import feed_forward, linear, qkv_linear
from fastbert.kernels.limits import ACTIVATIONS
from fastbert.kernels.linear import linear_bwd, linear_fwd, qkv_linear_bwd, qkv_linear_fwd
from fastbert.kernels.matmul.choose import use_gemm
from fastbert.kernels.primitives.tiles import offsets
from fastbert.kernels.reference import linear_ref
from fastbert.kernels.specs.linear import SPECS
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import DTYPES, GPU, as_list, compare, forward_backward, random_gradient

SAMPLES = [(spec, sample) for spec in SPECS for sample in spec.samples]
ON_GPU = SAMPLES if GPU else SAMPLES[:1]  # one to show as skipped


def make(*shapes, dtype=torch.float32, device="cpu"):
    g = generator()
    return [normal(shape, dtype, device, g, std=0.5) for shape in shapes]


def ids(pair):
    return f"{pair[0].name}-{pair[1].name}"


# In the interpreter test_specs.py runs every sample through the Triton kernels; on a GPU `auto` mixes both sides.


@pytest.mark.parametrize("pair", SAMPLES, ids=ids)
def test_library_side_matches_float64(pair, device):
    """PyTorch's own products against PyTorch's own, cut differently: which one sums in the luckier order differs by CPU."""
    spec, sample = pair
    with use_gemm("library"):
        for dtype in (torch.float16, torch.float32):
            inputs = sample.make(dtype, device)
            tensors = [t for value in inputs.values() for t in as_list(value) if isinstance(t, torch.Tensor)]
            compare(spec, inputs, dtype, summed_rows=max(max(t.shape) for t in tensors))


@pytest.mark.skipif(not GPU, reason="without a GPU test_specs.py has run every sample in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", ON_GPU, ids=ids)
def test_triton_side_matches_float64(pair, dtype, device):
    spec, sample = pair
    with use_gemm("triton"):
        compare(spec, sample.make(dtype, device), dtype)


@pytest.mark.skipif(not GPU, reason="float32 is never rounded to tf32 in the interpreter")
@pytest.mark.parametrize("pair", ON_GPU, ids=ids)
def test_tf32_matches_float64(pair, device):
    spec, sample = pair
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with use_gemm("triton"):
            compare(spec, sample.make(torch.float32, device), torch.float32)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_row_does_not_depend_on_the_others(activation, device):
    """With one tile for every M (float32 has one) a row gives the same bits alone and in any batch."""
    x, weight, bias = make((150, 40), (72, 40), (72,), device=device)
    with use_gemm("triton"):
        whole = linear(x, weight, bias, activation=activation)
        for rows in (slice(0, 1), slice(3, 70), slice(149, 150)):
            assert torch.equal(linear(x[rows], weight, bias, activation=activation), whole[rows])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_in_its_row(activation, device):
    x, weight, bias = make((70, 20), (33, 20), (33,), dtype=torch.float16, device=device)
    x[5, 3] = torch.nan
    y = linear(x, weight, bias, activation=activation)
    assert y[5].isnan().all()
    assert y[torch.arange(70) != 5].isfinite().all()


def test_neighbours_in_memory_are_never_read_into_a_result(device):
    """Slices of wider buffers whose other elements are NaN: 0 * NaN would show in any mask that leaks."""

    def island(shape):
        wide = torch.full((shape[0] + 2, shape[1] + 10), torch.nan, device=device)
        inside = wide[1:-1, 3:-7]
        return inside.copy_(make(shape, device=device)[0])

    x, w, w_out = island((19, 37)), island((41, 37)), island((13, 41))
    bias = torch.ones(41, device=device)
    with use_gemm("triton"):
        for function, inputs in (
            (linear, dict(x=x, weight=w, bias=bias)),
            (qkv_linear, dict(x=x, weights=(w, w, w), biases=(bias, bias, bias))),
            (feed_forward, dict(x=x, weight_in=w, bias_in=bias, weight_out=w_out)),
        ):
            for name, value in forward_backward(function, inputs, tuple(inputs), None, random_gradient).items():
                assert value.isfinite().all(), name


def test_qkv_weights_may_have_different_strides(device):
    x, q, k, v = make((6, 16), (8, 16), (8, 24), (16, 8), device=device)
    weights = (q, k[:, 4:20], v.t())
    with use_gemm("triton"):
        got = forward_backward(qkv_linear, dict(x=x, weights=weights), ("x", "weights"), None, random_gradient)
    expected = forward_backward(linear_ref, dict(x=x, weight=torch.cat(weights)), ("x", "weight"), None, random_gradient)
    torch.testing.assert_close(got["out"], expected["out"])
    torch.testing.assert_close(got["dx"], expected["dx"])
    torch.testing.assert_close(torch.cat([got[f"dweights{i}"] for i in range(3)]), expected["dweight"])


def test_strided_bias_and_expanded_gradient(device):
    x, weight, wide = make((5, 16), (24, 16), (24, 3), device=device)
    weight.requires_grad_()
    bias = wide[:, 1].requires_grad_()
    linear(x, weight, bias).sum().backward()  # the gradient that arrives has stride 0
    torch.testing.assert_close(bias.grad, torch.full((24,), 5.0, device=device))
    torch.testing.assert_close(weight.grad, x.sum(0).expand(24, 16))
    torch.testing.assert_close(linear(x, weight, bias), linear_ref(x, weight, bias))


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("N", [0, 1, 5])
def test_axes_of_zero_and_one(N, K, device):
    x, weight, bias = make((4, K), (N, K), (N,), device=device)
    for activation in (None, "gelu_erf"):
        inputs = dict(x=x, weight=weight, bias=bias, activation=activation)
        got = forward_backward(linear, inputs, ("x", "weight", "bias"), None, random_gradient)
        expected = forward_backward(linear_ref, inputs, ("x", "weight", "bias"), None, random_gradient)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_weights_changed_in_place_take_effect(device):
    x, w, b, w_out = make((4, 16), (24, 16), (24,), (16, 24), device=device)
    calls = (
        lambda: linear(x, w, b, activation="relu"),
        lambda: qkv_linear(x, (w, w, w), (b, b, b)),
        lambda: feed_forward(x, w, b, w_out),
    )
    before = [call() for call in calls]
    w.mul_(2), b.add_(1)
    for call, old, fresh in zip(calls, before, (linear_ref(x, w, b, activation="relu"), linear_ref(x, w, b), None)):
        now = call()
        assert not torch.allclose(now, old)
        if fresh is not None:
            torch.testing.assert_close(now[:, : fresh.shape[1]], fresh)


def test_saves_only_what_the_backward_needs(device):
    x, w, b, w_out = make((4, 16), (24, 16), (24,), (16, 24), device=device)
    assert [t.shape[0] for t in linear_fwd(x, w, b, "relu", False)] == [4, 0]
    assert [t.shape[0] for t in feed_forward_fwd(x, w, b, w_out, "relu", False, False)] == [4, 0, 0]
    y, _, _ = feed_forward_fwd(x.requires_grad_(), w, b, w_out, "relu", True, False)
    assert [t is None for t in y.grad_fn.saved_tensors] == [True, False, False, False, True]  # neither x nor h
    w_out.requires_grad_()
    kept = {keep: feed_forward(x, w, b, w_out, keep_inner=keep) for keep in (False, True)}  # a node may go with its result
    saved = {
        keep: [None if t is None else tuple(t.shape) for t in _operator(y.grad_fn).saved_tensors] for keep, y in kept.items()
    }
    assert saved[False] == [None, (24, 16), (16, 24), (4, 24), None]
    assert saved[True] == [None, (24, 16), (16, 24), (4, 24), (4, 24)]
    y = feed_forward(x.detach(), w, b, w_out, keep_inner=True)
    assert [t is None for t in _operator(y.grad_fn).saved_tensors] == [True, True, True, True, False]
    with pytest.raises(RuntimeError, match="save=False"):
        linear_fwd(x, w, b, "relu", False)
    with pytest.raises(RuntimeError, match="without saving"):
        feed_forward_fwd(x, w, b, w_out.detach(), "relu", False, True)


def _operator(node):
    """The operator's own node below the views of its result."""
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    return node


@pytest.mark.parametrize("side", ["triton", "library"])
@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "relu"])
def test_the_recomputed_inner_state_gives_the_gradients_of_the_one_kept(side, activation, device):
    """To the bit where one side makes both; also where only the last weight is trained."""
    inputs = dict(zip(("x", "weight_in", "bias_in", "weight_out"), make((37, 16), (72, 16), (72,), (24, 72), device=device)))
    found = {}
    for keep in (False, True):
        with use_gemm(side):
            for names in (tuple(inputs), ("weight_out",)):
                found[keep, names] = forward_backward(
                    functools.partial(feed_forward, keep_inner=keep),
                    inputs | {"activation": activation},
                    names,
                    None,
                    random_gradient,
                )
    for names in (tuple(inputs), ("weight_out",)):
        for name, gradient in found[True, names].items():
            exact = side == "triton" and len(names) > 1
            torch.testing.assert_close(found[False, names][name], gradient, **(dict(rtol=0, atol=0) if exact else {}))


def test_autocast_computes_in_the_lower_precision(device):
    x, w, b, w_out = make((9, 16), (24, 16), (24,), (16, 24), device=device)
    parameters = [t.requires_grad_() for t in (w, b, w_out)]
    with torch.autocast(device.type, dtype=torch.float16):
        ys = linear(x, w, b), qkv_linear(x, (w, w, w), (b, b, b)), feed_forward(x, w, b, w_out)
    assert [y.dtype for y in ys] == [torch.float16] * 3
    sum(y.float().sum() for y in ys).backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters)


@pytest.mark.parametrize("side", ["triton", "library"])
def test_float32_backward_inside_autocast_stays_float32(side, device):
    x, w, b = (t.requires_grad_() for t in make((9, 16), (24, 16), (24,), device=device))
    with use_gemm(side):
        y = linear(x, w, b, activation="gelu_erf")
        with torch.autocast(device.type, dtype=torch.float16):
            y.sum().backward()
    expected = forward_backward(
        linear_ref, dict(x=x, weight=w, activation="gelu_erf", bias=b), ("x", "weight"), None, torch.ones_like
    )
    torch.testing.assert_close(w.grad, expected["dweight"])
    torch.testing.assert_close(x.grad, expected["dx"])


def test_opcheck(device):
    x, w, b, w_out = (t.requires_grad_() for t in make((5, 16), (24, 16), (24,), (16, 24), device=device))
    dy, u = make((5, 24), (5, 24), device=device)
    dy_out, dy_qkv = make((5, 16), (5, 72), device=device)
    check = torch.library.opcheck
    check(linear_fwd, (x, w, b, None, True))
    check(linear_fwd, (x, w, None, "gelu_tanh", True))
    check(qkv_linear_fwd, (x, w, w, w, b, b, b))
    check(qkv_linear_fwd, (x, w, w, w, None, None, None))
    check(feed_forward_fwd, (x, w, b, w_out, "gelu_erf", True, True))
    x, w, b, w_out = (t.detach() for t in (x, w, b, w_out))
    check(linear_bwd, (dy, x, w, None, None, True))
    check(linear_bwd, (dy, None, w, u, "relu", False))
    check(qkv_linear_bwd, (dy_qkv, x, w, w, w, True))
    check(qkv_linear_bwd, (dy_qkv, None, None, None, None, True))
    check(feed_forward_bwd, (dy_out, x, w, w_out, u, u, "gelu_erf", True, True))
    check(feed_forward_bwd, (dy_out, x, w, w_out, u, None, "gelu_erf", True, True))
    check(feed_forward_bwd, (dy_out, None, None, w_out, u, None, "gelu_erf", True, False))
    check(feed_forward_bwd, (dy_out, None, None, None, None, u, "gelu_erf", False, True))
    check(feed_forward_bwd, (dy_out, None, None, None, u, None, "gelu_erf", False, True))


def test_compiles_without_a_graph_break(device):
    x, w, b, w_out = make((2, 5, 16), (24, 16), (24,), (16, 24), device=device)
    for function, inputs in (
        (linear, dict(x=x, weight=w, bias=b, activation="gelu_erf")),
        (qkv_linear, dict(x=x, weights=(w, w, w), biases=(b, b, b))),
        (feed_forward, dict(x=x, weight_in=w, bias_in=b, weight_out=w_out)),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
        expected = forward_backward(function, inputs, tuple(inputs), None, torch.cos)
        for name, value in forward_backward(compiled, inputs, tuple(inputs), None, torch.cos).items():
            torch.testing.assert_close(value, expected[name])


@triton.jit
def _offsets_kernel(out_ptr, first_row, stride_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = first_row + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tl.store(out_ptr + offsets(tl.arange(0, ROWS), columns, COLUMNS), offsets(rows, columns, stride_row))


def test_offsets_past_two_to_the_31(device):
    """The one function that every kernel takes its offsets from, at rows that no test could allocate."""
    out = torch.empty(16, 8, dtype=torch.int64, device=device)
    first_row, stride_row = 2**31 - 17, 4096
    _offsets_kernel[(1,)](out, first_row, stride_row, ROWS=16, COLUMNS=8)
    rows = torch.arange(first_row, first_row + 16, device=device)
    assert torch.equal(out, rows[:, None] * stride_row + torch.arange(8, device=device))


@pytest.mark.skipif(GPU, reason="rests on memory that is reserved but never touched, which a GPU does not have")
def test_operands_past_two_to_the_31_elements():
    """Rows 2^30 elements apart. 32-bit arithmetic would wrap to the zeros that lie before the view."""
    pitch, rows = 2**30 + 8, 5
    before = 2**31
    length = before + rows * pitch
    try:
        memory = mmap.mmap(-1, 2 * length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except OSError as error:
        pytest.skip(f"the system does not reserve {2 * length >> 30} GiB of address space: {error}")
    flat = torch.frombuffer(memory, dtype=torch.float16)
    far = flat[before:].as_strided((rows, 24), (pitch, 1))
    near = make((rows, 24), dtype=torch.float16)[0]
    far.copy_(near)
    weight, bias, dy = make((rows, 24), (rows,), (rows, rows), dtype=torch.float16)
    with use_gemm("triton"):
        for activation in (None, "gelu_erf"):
            # As the input, as the weight (read by the forward and, transposed, by the dgrad), as both sides of the wgrad.
            assert torch.equal(
                linear(far, weight, bias, activation=activation), linear(near, weight, bias, activation=activation)
            )
            assert torch.equal(
                linear(weight, far, bias, activation=activation), linear(weight, near, bias, activation=activation)
            )
        for operands, same in (((dy, far, far), (dy, near, near)), ((far[:, :5], far, far), (near[:, :5], near, near))):
            u = near.new_ones(rows, rows)
            for activation in (None, "relu"):
                for got, expected in zip(linear_bwd(*operands, u, activation, True), linear_bwd(*same, u, activation, True)):
                    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [
        (linear, dict(weight=torch.ones(4, 7)), ValueError, r"expected a weight of shape \(N, 8\).*got \(4, 7\)"),
        (linear, dict(bias=torch.ones(5)), ValueError, r"expected a bias of shape \(4,\), got \(5,\)"),
        (linear, dict(weight=torch.ones(4, 8).half()), TypeError, "expected weight of dtype torch.float32.*got torch.float16"),
        (linear, dict(x=torch.ones(2, 8).long()), TypeError, "floating-point"),
        (linear, dict(activation="swish"), ValueError, "expected an activation among .*got 'swish'"),
        (qkv_linear, dict(weights=(torch.ones(4, 8),) * 2), ValueError, "expected three weights .*got 2 and 3"),
        (qkv_linear, dict(biases=(torch.ones(4), None, torch.ones(4))), ValueError, "expected key like query"),
        (qkv_linear, dict(weights=(torch.ones(4, 8), torch.ones(4, 8), torch.ones(5, 8))), ValueError, "value"),
        (feed_forward, dict(weight_out=torch.ones(8, 5)), ValueError, r"expected weight_out of shape \(N, 4\).*got \(8, 5\)"),
        (feed_forward, dict(activation=None), ValueError, "expected an activation among"),
    ],
)
def test_rejects_bad_input(function, change, error, message):
    x, weight, bias = torch.ones(2, 8), torch.ones(4, 8), torch.ones(4)
    inputs = {
        linear: dict(x=x, weight=weight, bias=bias),
        qkv_linear: dict(x=x, weights=(weight,) * 3, biases=(bias,) * 3),
        feed_forward: dict(x=x, weight_in=weight, bias_in=bias, weight_out=torch.ones(8, 4)),
    }[function]
    with pytest.raises(error, match=message):
        function(**(inputs | change))
