"""layer_norm: layouts, dtypes, registration, limits. The float64 comparisons are generated in test_specs.py."""

import pytest
import torch

from fastbert.kernels.functional import layer_norm
from fastbert.kernels.layer_norm import layer_norm_bwd, layer_norm_fwd
from fastbert.kernels.reference import layer_norm_ref
from fastbert.kernels.specs.spec import generator, normal, seed_tensor
from tests.kernels.harness import DTYPES, forward_backward


def make(shape, dtype, device):
    g = generator()
    return [normal(s, dtype, device, g) for s in (shape, (shape[-1],), (shape[-1],), shape, (shape[-1],))]


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32])
def test_float32_residual_keeps_float32(dtype, device):
    """Under autocast the sub-layer is 16-bit and the residual stream float32, as in transformers."""
    x, weight, bias, residual, x_bias = make((9, 96), torch.float32, device)
    inputs = dict(x=x.to(dtype), weight=weight, bias=bias, residual=residual, x_bias=x_bias)
    got = forward_backward(layer_norm, inputs, tuple(inputs), None, lambda out: out.cos())
    exact = forward_backward(layer_norm_ref, inputs, tuple(inputs), torch.float64, lambda out: out.cos())
    assert got["out"].dtype == got["dresidual"].dtype == torch.float32
    assert got["dx"].dtype == dtype
    torch.testing.assert_close(got["out"].double(), exact["out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["dresidual"].double(), exact["dresidual"], rtol=1e-4, atol=1e-4)


def test_autocast_gives_float32(device):
    x, weight, bias, *_ = make((4, 64), torch.float32, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert layer_norm(x.bfloat16(), weight, bias).dtype == torch.float32


def test_row_padded_view_is_read_in_place(device):
    wide = torch.randn(6, 100, device=device)
    y = layer_norm(wide[:, 10:74], torch.ones(64, device=device), torch.zeros(64, device=device))
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(wide[:, 10:74], (64,), eps=1e-12))


def test_opcheck(device):
    x, weight, bias, residual, x_bias = (t.requires_grad_() for t in make((5, 72), torch.float32, device))
    seed = seed_tensor(3, device)
    for args in (
        (x, weight, bias, None, None, 1e-12, 0.0, None, 0, torch.float32, True),
        (x, weight, bias, residual, x_bias, 1e-12, 0.2, seed, 1, torch.float32, True),
    ):
        torch.library.opcheck(layer_norm_fwd, args)
    y, xhat, mean, rstd = layer_norm_fwd(*(a.detach() if isinstance(a, torch.Tensor) else a for a in args))
    bwd = (y, xhat, weight.detach(), mean, rstd, False, torch.float32, torch.float32, 0.2, seed, 1, True, True, True)
    torch.library.opcheck(layer_norm_bwd, bwd)


def test_compiles_without_a_graph_break(device):
    x, weight, bias, residual, _ = (t.requires_grad_() for t in make((5, 72), torch.float32, device))
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    expected = forward_backward(
        layer_norm, dict(x=x, weight=weight, bias=bias, residual=residual), ("x", "weight"), None, torch.cos
    )
    got = forward_backward(compiled, dict(x=x, weight=weight, bias=bias, residual=residual), ("x", "weight"), None, torch.cos)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.ones(5)), ValueError, r"expected weight of shape \(8,\).*got \(5,\)"),
        (dict(residual=torch.ones(3, 8)), ValueError, r"expected residual of shape \(2, 8\).*got \(3, 8\)"),
        (dict(bias=torch.ones(8).half()), TypeError, "expected bias of dtype torch.float32.*got torch.float16"),
        (dict(x=torch.ones(2, 8, dtype=torch.int64)), TypeError, "floating-point"),
        (dict(dropout_p=-0.1), ValueError, r"dropout_p must lie in \[0, 1\], got -0.1"),
        (dict(x=torch.ones(2, 0), weight=torch.ones(0), bias=torch.ones(0)), ValueError, "last axis of 1 to"),
    ],
)
def test_rejects_bad_input(change, error, message):
    inputs = dict(x=torch.ones(2, 8), weight=torch.ones(8), bias=torch.ones(8)) | change
    with pytest.raises(error, match=message):
        layer_norm(**inputs)
