"""Cross entropy of hidden @ weight.T + bias against labels: BERT's masked-language-model loss with its decoder.

hidden: (M, N); weight: (V, N); bias: (V,) or None; labels: (M,) int64; loss: float32 scalar.
The logits exist a chunk of rows at a time, in hidden's dtype, rows `pitch` elements apart. One kernel turns a row of them
into its loss and, in place, into its gradient softmax - onehot; two products and a column sum follow while the chunk exists.
So a forward that a backward will follow already computes every gradient, in float32 and for a loss that is the sum over the
rows; the backward multiplies by the incoming gradient (and 1 / count) and rounds once. Nothing as small as
probability / count is ever held in 16 bits, so a loss scale that comes with the incoming gradient is not too late.
The pitch is V rounded up to whole vectors and tiles; the decoder is read with as many rows, the added ones zero.
Chunks are added in order, partial sums in a fixed order; no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import cdiv
from .matmul import products
from .primitives.layout import last_contiguous
from .primitives.reduce import column_sum
from .registration import register, wants_grad

# One chunk of logits. Smaller ones would leave the product that computes dhidden too few tiles to fill a GPU.
MAX_LOGITS_BYTES = 1 << 30
MAX_LOGITS_BYTES_INTERPRETED = 1 << 16  # so that several chunks are exercised there too
PITCH_MULTIPLE = 64
# A row is read twice, the second time from L2: with many warps per row only four rows per multiprocessor are in progress
# (32 MB at BERT's vocabulary on 132 of them). Compiled for sm_90: 31 registers in bfloat16, no spill; not yet timed.
BLOCK_V, ROW_WARPS = 4096, 16
LOSS_BLOCK, LOSS_WARPS = 1024, 4
SCALE_BLOCK, SCALE_WARPS = 4096, 8


@triton.jit
def cross_entropy_rows_kernel(
    logits_ptr, labels_ptr, losses_ptr,
    V, pitch, ignore_index,
    WRITE_GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One row: its loss and, over its logits, softmax - onehot. Ignored rows give zeros, impossible labels NaN.

    Loads and stores are bounded by pitch, not V: a bound that is a multiple of 16 keeps them vectors.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_v = tl.arange(0, BLOCK_V)
    row_ptr = logits_ptr + row * pitch
    label = tl.load(labels_ptr + row)  # scalar
    if label == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if WRITE_GRADIENT:
            for start in range(0, pitch, BLOCK_V):
                zeros = tl.zeros([BLOCK_V], row_ptr.dtype.element_ty)
                tl.store(row_ptr + start + offs_v, zeros, mask=start + offs_v < pitch)
    else:
        is_possible = (label >= 0) & (label < V)
        target = tl.load(row_ptr + label, mask=is_possible, other=float("nan")).to(tl.float32)  # scalar
        peak = tl.full([], -3.0e38, tl.float32)  # finite: a block of -inf must not give inf - inf
        acc = tl.zeros([BLOCK_V], tl.float32)
        for start in range(0, pitch, BLOCK_V):
            cols = start + offs_v
            x = tl.load(row_ptr + cols, mask=cols < pitch, other=0.0).to(tl.float32)  # [BLOCK_V]
            x = tl.where(cols < V, x, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(x, axis=0))
            acc = acc * tl.exp(peak - new_peak) + tl.exp(x - new_peak)
            peak = new_peak
        total = tl.sum(acc, axis=0)
        tl.store(losses_ptr + row, tl.log(total) + (peak - target))
        if WRITE_GRADIENT:
            scale = tl.where(is_possible, 1.0 / total, float("nan"))
            for start in range(0, pitch, BLOCK_V):
                cols = start + offs_v
                x = tl.load(row_ptr + cols, mask=cols < pitch, other=0.0).to(tl.float32)  # [BLOCK_V]
                gradient = tl.exp(x - peak) * scale - (cols == label).to(tl.float32)
                gradient = tl.where(cols < V, gradient, 0.0)
                tl.store(row_ptr + cols, gradient.to(row_ptr.dtype.element_ty), mask=cols < pitch)


@triton.jit(do_not_specialize=["M"])
def loss_kernel(
    losses_ptr, labels_ptr, loss_ptr, scale_ptr,
    M, ignore_index,
    IS_MEAN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The sum or mean of the rows' losses, added in float64; scale: 1, or 1 / count for a mean."""
    offs = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M], tl.float64)
    labelled = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, M, BLOCK_M):
        rows = start + offs
        acc += tl.load(losses_ptr + rows, mask=rows < M, other=0.0).to(tl.float64)  # [BLOCK_M]
        label = tl.load(labels_ptr + rows, mask=rows < M, other=ignore_index)  # [BLOCK_M]
        labelled += (label != ignore_index).to(tl.int32)
    loss = tl.sum(acc, axis=0)
    count = tl.sum(labelled, axis=0)
    if IS_MEAN:
        loss = tl.where(count > 0, loss / tl.maximum(count, 1).to(tl.float64), float("nan"))
        tl.store(scale_ptr, 1.0 / tl.maximum(count, 1).to(tl.float64))
    else:
        tl.store(scale_ptr, 1.0)
    tl.store(loss_ptr, loss.to(tl.float32))


@triton.jit
def scale_kernel(x_ptr, grad_ptr, scale_ptr, out_ptr, numel, BLOCK: tl.constexpr):
    """out = x * grad * scale. float32 is rounded once: softmax - onehot is often exact, its roundings would show."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(grad_ptr) * tl.load(scale_ptr)  # scalar
    x = tl.load(x_ptr + offs, mask=offs < numel, other=0.0)  # [BLOCK]
    if out_ptr.dtype.element_ty != tl.float32:
        factor = factor.to(tl.float32)
    tl.store(out_ptr + offs, (x * factor).to(out_ptr.dtype.element_ty), mask=offs < numel)


def chunk_rows(M: int, V: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """How many rows of logits exist at a time, chunks being of even size, and the elements from one row to the next."""
    limit = MAX_LOGITS_BYTES if device.type == "cuda" else MAX_LOGITS_BYTES_INTERPRETED
    pitch = cdiv(V, PITCH_MULTIPLE) * PITCH_MULTIPLE
    most = max(limit // (pitch * dtype.itemsize), 1)
    rows = cdiv(M, max(cdiv(M, most), 1))
    if rows < M:  # whole tiles for the products
        rows = min(cdiv(rows, 128) * 128, most)
    return rows, pitch


def _padded(x: Tensor, rows: int) -> Tensor:
    """x with zero rows at its end: a copy, unless it has as many already."""
    return x if x.shape[0] == rows else torch.cat([x, x.new_zeros((rows - x.shape[0], *x.shape[1:]))])


def _chunks(hidden, weight, bias, labels, ignore_index, losses, want_hidden, want_weight, want_bias):
    """Fills losses and returns (dhidden, dweight, dbias) of their sum; the decoder's have rows up to the pitch."""
    M, V = hidden.shape[0], weight.shape[0]
    chunk, pitch = chunk_rows(M, V, hidden.dtype, hidden.device)
    weight, bias = _padded(weight, pitch), None if bias is None else _padded(bias, pitch)
    block_v = min(triton.next_power_of_2(pitch), BLOCK_V)
    dhiddens = []
    decoder: tuple[Tensor, ...] = ()
    for start in range(0, M, chunk):
        rows = slice(start, min(start + chunk, M))
        logits, _ = products.forward(hidden[rows], weight, bias, None, False)
        cross_entropy_rows_kernel[(logits.shape[0],)](
            logits, labels[rows], losses[rows],
            V, pitch, ignore_index,
            WRITE_GRADIENT=want_hidden or want_weight or want_bias, BLOCK_V=block_v,
            num_warps=max(block_v * ROW_WARPS // BLOCK_V, 1),
        )  # fmt: skip
        dlogits = logits  # the kernel has replaced them
        dhiddens.append(products.dgrad(dlogits, weight, torch.float32) if want_hidden else _empty(hidden))
        shares = _decoder_gradients(dlogits, hidden[rows], want_weight, want_bias)
        decoder = tuple(total.add_(share) for total, share in zip(decoder, shares)) if decoder else shares
        del logits, dlogits  # before the next chunk's are allocated
    return dhiddens[0] if len(dhiddens) == 1 else torch.cat(dhiddens), *decoder


def _decoder_gradients(dlogits: Tensor, hidden: Tensor, want_weight: bool, want_bias: bool) -> tuple[Tensor, Tensor]:
    """dlogits.T @ hidden and the sum of dlogits over the rows, in float32; empty where not wanted."""
    if want_weight:
        return products.wgrad(dlogits, hidden, want_bias, torch.float32)
    empty = _empty(hidden)
    return empty, column_sum(dlogits, torch.float32) if want_bias else empty.view(-1)


def _empty(hidden: Tensor) -> Tensor:
    return hidden.new_empty((0, hidden.shape[1]), dtype=torch.float32)


def _cross_entropy_fwd(hidden, weight, bias, labels, ignore_index, is_mean, want_hidden, want_weight, want_bias):
    M, V = hidden.shape[0], weight.shape[0]
    losses = torch.empty((M,), dtype=torch.float32, device=hidden.device)
    # Gradients are allocated here only where there are no rows, and by the chunks otherwise.
    wants = (False, False, False) if M else (want_hidden, want_weight, want_bias)
    loss, scale, *gradients = _cross_entropy_fwd_fake(hidden, weight, bias, labels, ignore_index, is_mean, *wants)
    if M == 0:
        dhidden, dweight, dbias = (gradient.zero_() for gradient in gradients)
    else:
        dhidden, dweight, dbias = _chunks(
            hidden, weight, bias, labels, ignore_index, losses, want_hidden, want_weight, want_bias
        )
    loss_kernel[(1,)](
        losses, labels, loss, scale,
        M, ignore_index,
        IS_MEAN=is_mean, BLOCK_M=LOSS_BLOCK, num_warps=LOSS_WARPS,
    )  # fmt: skip
    return loss, scale, dhidden, dweight[:V], dbias[:V]


def _cross_entropy_fwd_fake(hidden, weight, bias, labels, ignore_index, is_mean, want_hidden, want_weight, want_bias):
    (M, N), V = hidden.shape, weight.shape[0]
    loss, scale = (torch.empty((), dtype=dtype, device=hidden.device) for dtype in (torch.float32, torch.float64))
    shapes = ((M if want_hidden else 0, N), (V if want_weight else 0, N), (V if want_bias else 0,))
    return loss, scale, *(torch.empty(shape, dtype=torch.float32, device=hidden.device) for shape in shapes)


def _cross_entropy_bwd(grad, scale, dhidden, dweight, dbias, dtype):
    gradients = _cross_entropy_bwd_fake(grad, scale, dhidden, dweight, dbias, dtype)
    for x, out in zip((dhidden, dweight, dbias), gradients):
        if x.numel():
            scale_kernel[(cdiv(x.numel(), SCALE_BLOCK),)](
                x, grad, scale, out, x.numel(), BLOCK=SCALE_BLOCK, num_warps=SCALE_WARPS
            )  # fmt: skip
    return gradients


def _cross_entropy_bwd_fake(grad, scale, dhidden, dweight, dbias, dtype):
    return tuple(torch.empty_like(x, dtype=dtype) for x in (dhidden, dweight, dbias))


cross_entropy_bwd = register(
    "cross_entropy_bwd(Tensor grad, Tensor scale, Tensor dhidden, Tensor dweight, Tensor dbias, ScalarType dtype) "
    "-> (Tensor, Tensor, Tensor)",
    _cross_entropy_bwd,
    fake=_cross_entropy_bwd_fake,
)


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, *_, want_hidden, want_weight, want_bias = inputs
    _, scale, dhidden, dweight, dbias = output
    wanted = (want_hidden, want_weight, want_bias)
    if any(x is not None and x.requires_grad and not want for x, want in zip((hidden, weight, bias), wanted)):
        raise RuntimeError("cross_entropy_fwd was asked for a gradient but called with want_… False")
    ctx.dtype = hidden.dtype
    ctx.save_for_backward(scale, dhidden, dweight, dbias)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    gradients = cross_entropy_bwd(grad, *ctx.saved_tensors, ctx.dtype)
    return *(gradient if want else None for gradient, want in zip(gradients, ctx.needs_input_grad)), *(None,) * 6


cross_entropy_fwd = register(
    "cross_entropy_fwd(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, int ignore_index, bool is_mean, "
    "bool want_hidden, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cross_entropy_fwd,
    fake=_cross_entropy_fwd_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def cross_entropy(hidden, weight, bias, labels, ignore_index, reduction) -> Tensor:
    """The kernel behind `functional.cross_entropy`, which documents and checks the arguments."""
    wants = [wants_grad(tensor) for tensor in (hidden, weight, bias)]
    hidden, weight = last_contiguous(hidden), last_contiguous(weight)
    return cross_entropy_fwd(hidden, weight, bias, labels.contiguous(), ignore_index, reduction == "mean", *wants)[0]
