"""Linear layers of BERT, forward and backward: one projection, or query, key and value at once.

x: (M, K); weight: (N, K); y, dy: (M, N); u: the value before an activation, rounded to y's dtype.
The products are those of matmul/products.py. Saved for the backward: x, the weights, and u where there is an activation. Bias
gradients are float32 sums in a fixed order, with the activation's derivative or in a pass of their own; no atomics. In a
backward operator, an input that is None was not saved, because no gradient that needs it is wanted.
"""

from collections.abc import Sequence

from torch import Tensor

from .matmul import products
from .matmul.activation_backward import activation_backward
from .primitives.layout import as_rows, last_contiguous
from .primitives.reduce import column_sum
from .registration import register, wants_grad

# One weight.


def _linear_fwd(x, weight, bias, activation, save):
    return products.forward(x, weight, bias, activation, save and activation is not None)


def _linear_fwd_fake(x, weight, bias, activation, save):
    M, N = x.shape[0], weight.shape[0]
    return x.new_empty(M, N), x.new_empty(M if save and activation is not None else 0, N)


def _linear_bwd(dy, x, weight, u, activation, want_bias):
    dx, dweight, dbias = _linear_bwd_fake(dy, x, weight, u, activation, False)
    if activation is not None:
        dy, dbias, _ = activation_backward(dy, u, activation, want_bias)
    if x is not None:
        dweight, row_sum = products.wgrad(dy, x, want_bias and activation is None)
        dbias = row_sum if activation is None else dbias
    elif want_bias and activation is None:
        dbias = column_sum(dy, dy.dtype)
    if weight is not None:
        dx = products.dgrad(dy, weight)
    return dx, dweight, dbias


def _linear_bwd_fake(dy, x, weight, u, activation, want_bias):
    M, N = dy.shape
    return (
        dy.new_empty((0, 0) if weight is None else (M, weight.shape[1])),
        dy.new_empty((0, 0) if x is None else (N, x.shape[1])),
        dy.new_empty(N if want_bias else 0),
    )


linear_bwd = register(
    "linear_bwd(Tensor dy, Tensor? x, Tensor? weight, Tensor? u, str? activation, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _linear_bwd,
    fake=_linear_bwd_fake,
)


def _linear_setup_context(ctx, inputs, output):
    x, weight, _, ctx.activation, save = inputs
    want_x, want_weight, ctx.want_bias = ctx.needs_input_grad[:3]
    if ctx.activation is not None and not save:
        raise RuntimeError("linear_fwd was asked for a gradient but called with save=False")
    u = None if ctx.activation is None else output[1]
    ctx.save_for_backward(x if want_weight else None, weight if want_x else None, u)
    ctx.set_materialize_grads(False)


def _linear_backward(ctx, dy, _):
    if dy is None:
        return (None,) * 5
    x, weight, u = ctx.saved_tensors
    dx, dweight, dbias = linear_bwd(last_contiguous(dy), x, weight, u, ctx.activation, ctx.want_bias)
    return (
        None if weight is None else dx,
        None if x is None else dweight,
        dbias if ctx.want_bias else None,
        None,
        None,
    )


linear_fwd = register(
    "linear_fwd(Tensor x, Tensor weight, Tensor? bias, str? activation, bool save) -> (Tensor, Tensor)",
    _linear_fwd,
    fake=_linear_fwd_fake,
    setup_context=_linear_setup_context,
    backward=_linear_backward,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The kernel behind `functional.linear`, which documents and checks the arguments."""
    save = wants_grad(x, weight, bias)
    y = linear_fwd(as_rows(x), last_contiguous(weight), _optional_contiguous(bias), activation, save)[0]
    return y.view(*x.shape[:-1], weight.shape[0])


# Three weights of one shape, side by side. Their gradients are views of one tensor, which one product computes.


def _qkv_fwd(x, w0, w1, w2, b0, b1, b2):
    return products.qkv_forward(x, (w0, w1, w2), (b0, b1, b2))


def _qkv_fwd_fake(x, w0, w1, w2, b0, b1, b2):
    return x.new_empty(x.shape[0], 3 * w0.shape[0])


def _qkv_bwd(dy, x, w0, w1, w2, want_bias):
    dx, dweights, dbiases = _qkv_bwd_fake(dy, x, w0, w1, w2, want_bias)
    if x is not None:
        dweight, row_sum = products.wgrad(dy, x, want_bias)
        dweights, dbiases = dweight.view(dweights.shape), row_sum.view(dbiases.shape)
    elif want_bias:
        dbiases = column_sum(dy, dy.dtype).view(dbiases.shape)
    if w0 is not None:
        dx = products.qkv_dgrad(dy, (w0, w1, w2))
    return dx, dweights, dbiases


def _qkv_bwd_fake(dy, x, w0, w1, w2, want_bias):
    M, N = dy.shape[0], dy.shape[1] // 3
    return (
        dy.new_empty((0, 0) if w0 is None else (M, w0.shape[1])),
        dy.new_empty((3, 0, 0) if x is None else (3, N, x.shape[1])),
        dy.new_empty(3, N if want_bias else 0),
    )


qkv_linear_bwd = register(
    "qkv_linear_bwd(Tensor dy, Tensor? x, Tensor? w0, Tensor? w1, Tensor? w2, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _qkv_bwd,
    fake=_qkv_bwd_fake,
)


def _qkv_setup_context(ctx, inputs, output):
    x, *weights = inputs[:4]
    want_x = ctx.needs_input_grad[0]
    ctx.want_weights, ctx.want_biases = ctx.needs_input_grad[1:4], ctx.needs_input_grad[4:7]
    ctx.save_for_backward(x if any(ctx.want_weights) else None, *(weight if want_x else None for weight in weights))
    ctx.set_materialize_grads(False)


def _qkv_backward(ctx, dy):
    if dy is None:
        return (None,) * 7
    x, *weights = ctx.saved_tensors
    dx, dweights, dbiases = qkv_linear_bwd(last_contiguous(dy), x, *weights, any(ctx.want_biases))
    return (
        None if weights[0] is None else dx,
        *(dweight if want else None for dweight, want in zip(dweights.unbind(0), ctx.want_weights)),
        *(dbias if want else None for dbias, want in zip(dbiases.unbind(0), ctx.want_biases)),
    )


qkv_linear_fwd = register(
    "qkv_linear_fwd(Tensor x, Tensor w0, Tensor w1, Tensor w2, Tensor? b0, Tensor? b1, Tensor? b2) -> Tensor",
    _qkv_fwd,
    fake=_qkv_fwd_fake,
    setup_context=_qkv_setup_context,
    backward=_qkv_backward,
)


def qkv_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """The kernel behind `functional.qkv_linear`, which documents and checks the arguments."""
    y = qkv_linear_fwd(as_rows(x), *map(last_contiguous, weights), *map(_optional_contiguous, biases))
    return y.view(*x.shape[:-1], 3 * weights[0].shape[0])


def _optional_contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else last_contiguous(bias)
