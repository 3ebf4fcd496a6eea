"""cross_entropy: chunks, ignored and impossible labels, small gradients, registration, limits.

The float64 comparisons are generated in test_specs.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastbert.kernels import cross_entropy as kernel
from fastbert.kernels.cross_entropy import chunk_rows, cross_entropy_bwd, cross_entropy_fwd
from fastbert.kernels.functional import cross_entropy
from fastbert.kernels.matmul.choose import use_gemm
from fastbert.kernels.reference import cross_entropy_ref
from fastbert.kernels.specs.cross_entropy import SPECS
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import GPU, assert_error_within, compare, forward_backward

(SPEC,) = SPECS
NAMES = SPEC.differentiable


def make(M, N, V, device, dtype=torch.float32, labelled=1.0):
    g = generator()
    labels = torch.randint(0, V, (M,), generator=g)
    labels[torch.rand(M, generator=g) >= labelled] = -100
    return {
        "hidden": normal((M, N), dtype, device, g),
        "weight": normal((V, N), dtype, device, g, std=2 * N**-0.5),
        "bias": normal((V,), dtype, device, g),
        "labels": labels.to(device),
    }


@pytest.fixture
def set_chunk(monkeypatch):
    """Sets the bytes of logits that may exist at a time."""

    def set_limit(limit):
        monkeypatch.setattr(kernel, "MAX_LOGITS_BYTES" if GPU else "MAX_LOGITS_BYTES_INTERPRETED", limit)

    return set_limit


def test_chunks_are_even_and_within_the_limit(device, set_chunk):
    set_chunk(1 << 30)
    assert chunk_rows(9830, 30522, torch.bfloat16, device) == (9830, 30528)  # 65,536 tokens of BERT: one chunk
    rows, pitch = chunk_rows(40_000, 30522, torch.bfloat16, device)
    assert rows % 128 == 0
    assert rows * pitch * 2 <= 1 << 30
    assert 2 * rows < 40_000 <= 3 * rows
    assert chunk_rows(0, 50, torch.float32, device)[1] == 64
    set_chunk(1)  # less than one row
    assert chunk_rows(5, 1000, torch.float32, device) == (1, 1024)


def test_several_chunks_give_what_one_gives(device, set_chunk):
    """Rows do not know of their chunk: bit for bit the same loss and dhidden, as long as the products have one tile shape,
    which float32 has. The gradients of the decoder are sums over rows, and there the rule holds."""
    inputs = make(50, 32, 130, device)
    exact = forward_backward(cross_entropy_ref, inputs, NAMES, torch.float64, torch.ones_like)
    in_torch = forward_backward(cross_entropy_ref, inputs, NAMES, None, torch.ones_like)
    results = []
    for limit in (1 << 20, 17 * 192 * 4, 6 * 192 * 4):  # one chunk, three, nine
        set_chunk(limit)
        with use_gemm("triton"):
            results.append(forward_backward(cross_entropy, inputs, NAMES, None, torch.ones_like))
        for name, value in results[-1].items():
            assert_error_within(name, value, in_torch[name], exact[name], 2.0)
    for name in ("out", "dhidden"):
        assert all(torch.equal(result[name], results[0][name]) for result in results[1:]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("name", ["several-chunks", "without-bias", "ignored"])
def test_library_products_obey_the_same_rule(name, dtype, device):
    sample = next(sample for sample in SPEC.samples if sample.name == name)
    with use_gemm("library"):
        compare(SPEC, sample.make(dtype, device), dtype)


@pytest.mark.parametrize("gemm", ["triton", "library"])
def test_only_the_bias_needs_a_gradient(gemm, device):
    inputs = make(20, 16, 70, device)
    with use_gemm(gemm):
        everything = forward_backward(cross_entropy, inputs, NAMES, None, torch.ones_like)
        alone = forward_backward(cross_entropy, inputs, ("bias",), None, torch.ones_like)
    torch.testing.assert_close(alone["dbias"], everything["dbias"])


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_logits_are_never_whole(device, set_chunk):
    M, N, V = 64, 16, 500
    inputs = make(M, N, V, device)
    chunk = 16 * 512 * 4
    set_chunk(chunk)
    with LargestTensor() as largest, torch.no_grad():
        kernel._cross_entropy_fwd(*inputs.values(), -100, True, True, True, True)
    assert largest.nbytes == chunk  # the decoder's gradient is as large, no tensor is larger


def test_incoming_gradient_scales(device):
    inputs = make(9, 32, 70, device)
    one = forward_backward(cross_entropy, inputs, NAMES, None, torch.ones_like)
    scaled = forward_backward(cross_entropy, inputs, NAMES, None, lambda out: torch.full_like(out, -2.5))
    for name in ("dhidden", "dweight", "dbias"):
        torch.testing.assert_close(scaled[name], -2.5 * one[name])


def test_backward_twice(device):
    """The first backward leaves what the forward saved as it was."""
    inputs = make(9, 32, 70, device)
    weight = inputs["weight"].requires_grad_()
    loss = cross_entropy(**inputs)
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)


def test_a_loss_scale_is_not_too_late(device):
    """probability / count is below float16's range; as PyTorch does, the gradients must survive once the scale is in."""
    inputs = make(400, 32, 1000, device, torch.float16)
    results = [
        forward_backward(function, inputs, NAMES, dtype, lambda out: torch.full_like(out, 4096.0))
        for function, dtype in ((cross_entropy, None), (cross_entropy_ref, None), (cross_entropy_ref, torch.float64))
    ]
    computed, _, exact = results
    for name in ("dhidden", "dweight", "dbias"):
        assert_error_within(name, *(result[name] for result in results), 2.0)
    small = exact["dbias"].abs() < 4096 * 6e-8
    assert not small.all()
    assert (computed["dbias"][~small] != 0).all()


@pytest.mark.parametrize(("reduction", "loss"), [("mean", float("nan")), ("sum", 0.0)])
@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_labelled(rows, reduction, loss, device):
    """As PyTorch: the loss is 0 / 0 or 0, and every gradient is zero. With `rows` they reach the kernel."""
    inputs = make(rows, 16, 30, device, labelled=0.0)
    inputs["labels"].fill_(-100)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    out = cross_entropy_fwd(*inputs.values(), -100, reduction == "mean", True, True, True)[0]
    torch.testing.assert_close(out, torch.tensor(loss, device=device), equal_nan=True)
    torch.testing.assert_close(cross_entropy(**inputs, reduction=reduction), out, equal_nan=True)
    for leaf, gradient in zip(leaves, torch.autograd.grad(out, leaves)):
        assert torch.equal(gradient, torch.zeros_like(leaf))


def test_ignored_rows_in_the_kernel(device):
    """While tracing no row is gathered: ignored ones add nothing, count nothing and receive zeros."""
    inputs = make(40, 24, 50, device, labelled=0.4)
    ignored = inputs["labels"] == -100
    expected = forward_backward(cross_entropy, inputs, NAMES, None, torch.ones_like)
    got = forward_backward(
        lambda hidden, weight, bias, labels: cross_entropy_fwd(hidden, weight, bias, labels, -100, True, True, True, True)[0],
        inputs,
        NAMES,
        None,
        torch.ones_like,
    )
    assert ignored.any()
    assert not got["dhidden"][ignored].any()
    assert got["dhidden"][~ignored].any(1).all()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_impossible_labels_are_loud_and_stay_inside(device):
    """Where label values are not checked, one outside the vocabulary gives NaN, and only in its own row."""
    V, pitch = 30, 64
    logits = torch.zeros(6, pitch, device=device)
    losses = torch.zeros(6, device=device)
    labels = torch.tensor([3, V, -1, 1 << 40, -100, 29], device=device)
    options = dict(WRITE_GRADIENT=True, BLOCK_V=64, num_warps=1)  # as launched: no lane reads what another one replaces
    kernel.cross_entropy_rows_kernel[(5,)](logits, labels, losses, V, pitch, -100, **options)
    assert losses.isnan().tolist() == [False, True, True, True, False, False]
    assert logits[:, :V].isnan().any(1).tolist() == [False, True, True, True, False, False]
    assert not logits[4:].any()  # the ignored row, and the one that no program has
    assert not logits[:, V:].any()


def test_banned_tokens(device):
    """A bias of -inf takes a token out: no probability, no gradient, no NaN."""
    inputs = make(2, 16, 4200, device)
    inputs["bias"][:4100] = float("-inf")  # the whole of the first block
    inputs["labels"] = inputs["labels"] % 100 + 4100
    got = forward_backward(cross_entropy, inputs, NAMES, None, torch.ones_like)
    exact = forward_backward(cross_entropy_ref, inputs, NAMES, torch.float64, torch.ones_like)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-5)


def test_decoder_of_a_whole_pitch_is_not_copied(device):
    weight = torch.randn(128, 8, device=device)
    assert kernel._padded(weight, 128) is weight
    assert not kernel._padded(weight[:100], 128)[100:].any()


def test_known_count_selects_the_same_rows(device):
    inputs = make(30, 16, 40, device, labelled=0.3)
    num_labelled = int((inputs["labels"] != -100).sum())
    assert torch.equal(cross_entropy(**inputs), cross_entropy(**inputs, num_labelled=num_labelled))


def test_autocast_keeps_float32_gradients(device):
    inputs = make(12, 16, 40, device)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    with torch.autocast(device.type, dtype=torch.float16):
        loss = cross_entropy(**inputs)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(F.linear(*(leaf.detach().double() for leaf in leaves)), inputs["labels"])
    torch.testing.assert_close(loss.double(), exact, rtol=1e-3, atol=1e-3)
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(loss, leaves))


def test_opcheck(device):
    inputs = make(7, 16, 30, device, labelled=0.7)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    for args in ((*leaves, inputs["labels"], -100, True), (*leaves[:2], None, inputs["labels"], -100, False)):
        torch.library.opcheck(cross_entropy_fwd, (*args, True, True, args[2] is not None), rtol=1e-4, atol=1e-5)
    _, *made = (t.detach() for t in cross_entropy_fwd(*args, True, True, False))
    torch.library.opcheck(cross_entropy_bwd, (torch.tensor(0.5, device=device), *made, torch.float16))


@pytest.mark.parametrize("labelled", [1.0, 0.2])
def test_compiles_without_a_graph_break(labelled, device):
    inputs = make(11, 16, 30, device, labelled=labelled)
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    for present in (inputs, inputs | {"bias": None}):
        expected, got = (
            forward_backward(function, present, NAMES, None, torch.ones_like) for function in (cross_entropy, compiled)
        )
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.ones(6, 5)), ValueError, r"weight of shape \(N, 4\).*got \(6, 5\)"),
        (dict(hidden=torch.ones(1, 3, 4)), ValueError, r"hidden of shape \(T, N\), got \(1, 3, 4\)"),
        (dict(bias=torch.ones(5)), ValueError, r"bias of shape \(6,\), got \(5,\)"),
        (dict(labels=torch.zeros(2, dtype=torch.int64)), ValueError, r"labels of shape \(3,\), got \(2,\)"),
        (dict(labels=torch.tensor([0, 6, 1])), ValueError, r"labels in \[0, 6\) or -100, got 6"),
        (dict(labels=torch.tensor([0, -1, 1])), ValueError, r"labels in \[0, 6\) or -100, got -1"),
        (dict(labels=torch.zeros(3, dtype=torch.int32)), TypeError, "labels of dtype int64, got torch.int32"),
        (dict(bias=torch.ones(6).half()), TypeError, "bias of dtype torch.float32.*got torch.float16"),
        (dict(reduction="none"), ValueError, "'mean' or 'sum', got 'none'"),
    ],
)
def test_rejects_bad_input(change, error, message):
    inputs = dict(hidden=torch.ones(3, 4), weight=torch.ones(6, 4), bias=torch.ones(6), labels=torch.zeros(3).long())
    with pytest.raises(error, match=message):
        cross_entropy(**inputs | change)
