"""The feed-forward of a BERT layer, forward and backward: two linear layers with an activation between them.

x: (M, K); u = x @ weight_in.T + bias_in: (M, F), rounded to x's dtype; h = activation(u); y = h @ weight_out.T: (M, N).
The products are those of matmul/products.py. Saved for the backward: x, the weights, u and, where the caller wants to keep it,
h; else h is recomputed where the backward reads u anyway. The gradient of bias_in is a float32 sum taken in the epilogue that
computes du; no atomics. In the backward operator, an input that is None was not saved, because no gradient that needs it is
wanted.
"""

from torch import Tensor

from . import reference
from .matmul import products
from .primitives.layout import as_rows, last_contiguous
from .registration import register, wants_grad


def _feed_forward_fwd(x, weight_in, bias_in, weight_out, activation, save_u, save_h):
    h, u = products.forward(x, weight_in, bias_in, activation, save_u)
    y, _ = products.forward(h, weight_out, None, None, False)
    return y, u, h if save_h else h.new_empty(0, h.shape[1])


def _feed_forward_fwd_fake(x, weight_in, bias_in, weight_out, activation, save_u, save_h):
    M, F = x.shape[0], weight_in.shape[0]
    return x.new_empty(M, weight_out.shape[0]), x.new_empty(M if save_u else 0, F), x.new_empty(M if save_h else 0, F)


def _feed_forward_bwd(dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out):
    dx, dweight_in, dbias_in, dweight_out = _feed_forward_bwd_fake(
        dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out
    )
    recomputes_h = want_weight_out and h is None
    if weight_out is not None:
        du, dbias_in, recomputed = products.dgrad_activation(dy, weight_out, u, activation, want_bias, recomputes_h)
    elif recomputes_h:
        recomputed = reference.activate(u, activation)
    if recomputes_h:
        dweight_out, _ = products.wgrad(dy, recomputed, False)
        del recomputed  # frees its memory for the next products
    elif want_weight_out:
        dweight_out, _ = products.wgrad(dy, h, False)
    if weight_out is not None:
        if x is not None:
            dweight_in, _ = products.wgrad(du, x, False)
        if weight_in is not None:
            dx = products.dgrad(du, weight_in)
    return dx, dweight_in, dbias_in, dweight_out


def _feed_forward_bwd_fake(dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out):
    M, N = dy.shape
    F = (h if u is None else u).shape[1]
    return (
        dy.new_empty((0, 0) if weight_in is None else (M, weight_in.shape[1])),
        dy.new_empty((0, 0) if x is None else (F, x.shape[1])),
        dy.new_empty(F if want_bias else 0),
        dy.new_empty((N, F) if want_weight_out else (0, 0)),
    )


feed_forward_bwd = register(
    "feed_forward_bwd(Tensor dy, Tensor? x, Tensor? weight_in, Tensor? weight_out, Tensor? u, Tensor? h, str activation, "
    "bool want_bias, bool want_weight_out) -> (Tensor, Tensor, Tensor, Tensor)",
    _feed_forward_bwd,
    fake=_feed_forward_bwd_fake,
)


def _feed_forward_setup_context(ctx, inputs, output):
    x, weight_in, _, weight_out, ctx.activation, save_u, save_h = inputs
    _, u, h = output
    want_x, want_weight_in, ctx.want_bias, ctx.want_weight_out = ctx.needs_input_grad[:4]
    want_du = want_x or want_weight_in or ctx.want_bias
    if (want_du and not save_u) or (ctx.want_weight_out and not (save_u or save_h)):
        raise RuntimeError("feed_forward_fwd was asked for a gradient but called without saving for it")
    ctx.save_for_backward(
        x if want_weight_in else None,
        weight_in if want_x else None,
        weight_out if want_du else None,
        u if save_u else None,
        h if save_h else None,
    )
    ctx.set_materialize_grads(False)


def _feed_forward_backward(ctx, dy, *_):
    if dy is None:
        return (None,) * 7
    x, weight_in, weight_out, u, h = ctx.saved_tensors
    dx, dweight_in, dbias_in, dweight_out = feed_forward_bwd(
        last_contiguous(dy), x, weight_in, weight_out, u, h, ctx.activation, ctx.want_bias, ctx.want_weight_out
    )
    return (
        None if weight_in is None else dx,
        None if x is None else dweight_in,
        dbias_in if ctx.want_bias else None,
        dweight_out if ctx.want_weight_out else None,
        *(None,) * 3,
    )


feed_forward_fwd = register(
    "feed_forward_fwd(Tensor x, Tensor weight_in, Tensor bias_in, Tensor weight_out, str activation, bool save_u, "
    "bool save_h) -> (Tensor, Tensor, Tensor)",
    _feed_forward_fwd,
    fake=_feed_forward_fwd_fake,
    setup_context=_feed_forward_setup_context,
    backward=_feed_forward_backward,
)


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, activation: str, keep_inner: bool
) -> Tensor:
    """The kernel behind `functional.feed_forward`, which documents and checks the arguments."""
    want_du, want_weight_out = wants_grad(x, weight_in, bias_in), wants_grad(weight_out)
    save_u, save_h = want_du or (want_weight_out and not keep_inner), want_weight_out and keep_inner
    y = feed_forward_fwd(
        as_rows(x),
        last_contiguous(weight_in),
        last_contiguous(bias_in),
        last_contiguous(weight_out),
        activation,
        save_u,
        save_h,
    )[0]
    return y.view(*x.shape[:-1], weight_out.shape[0])
