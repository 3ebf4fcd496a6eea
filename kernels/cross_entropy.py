"""Cross entropy of hidden @ weight.T + bias against labels: BERT's masked-language-model loss with its decoder.

hidden: (M, N); weight: (V, N); bias: (V,) or None; labels: (M,) int64; loss: float32 scalar.
The logits exist a chunk of rows at a time, in hidden's dtype, rows `pitch` elements apart. One kernel turns a row of them
into its loss and, in place, into its gradient softmax - onehot; two products and a column sum follow while the chunk is
there. So a forward that has a backward to follow already makes every gradient, in float32 and for a loss that is the sum
over the rows; the backward multiplies by the incoming gradient (and 1 / count) and rounds once. Nothing as small as
probability / count is ever held in 16 bits, so a loss scale that comes with the incoming gradient is not too late.
The pitch is V rounded up to whole vectors and tiles; the decoder is read with as many rows, the added ones zero.
Chunks are added in order, partial sums in a fixed order; no atomics.
"""

import random
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import functional, reference
from .device import cdiv
from .matmul.pointers import dgrad_variants, gemm_dgrad, gemm_fwd, gemm_wgrad, wgrad_variants
from .matmul.sides import side
from .primitives.reduce import sum_partials
from .registration import register, wants_grad
from .specs.spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal

# One chunk of logits. Smaller ones would leave the product that makes dhidden too few tiles to fill a GPU.
MAX_LOGITS_BYTES = 1 << 30
MAX_LOGITS_BYTES_INTERPRETED = 1 << 16  # so that several chunks are exercised there too
PITCH_MULTIPLE = 64
# A row is read twice, the second time from L2: many warps per row keep the rows under way few, four per multiprocessor
# (32 MB at BERT's vocabulary on 132 of them). Compiled for sm_90: 31 registers in bfloat16, no spill; not yet timed.
BLOCK_V, ROW_WARPS = 4096, 16
COLUMN_SUM_GROUPS = 8  # row groups of a chunk whose column sums are taken apart


@triton.jit
def _cross_entropy_rows_kernel(
    logits_ptr, labels_ptr, losses_ptr, V, pitch, ignore_index, WRITE_GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr
):
    """One row: its loss and, over its logits, softmax - onehot. Ignored rows give zeros, impossible labels NaN.

    Loads and stores are bounded by pitch, not V: a bound that is a multiple of 16 keeps them vectors.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_v = tl.arange(0, BLOCK_V)
    row_ptr = logits_ptr + row * pitch
    label = tl.load(labels_ptr + row)
    if label == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if WRITE_GRADIENT:
            for start in range(0, pitch, BLOCK_V):
                zeros = tl.zeros([BLOCK_V], row_ptr.dtype.element_ty)
                tl.store(row_ptr + start + offs_v, zeros, mask=start + offs_v < pitch)
    else:
        is_possible = (label >= 0) & (label < V)
        target = tl.load(row_ptr + label, mask=is_possible, other=float("nan")).to(tl.float32)
        peak = tl.full([], -3.0e38, tl.float32)  # finite: a block of -inf must not give inf - inf
        acc = tl.zeros([BLOCK_V], tl.float32)
        for start in range(0, pitch, BLOCK_V):
            cols = start + offs_v
            x = tl.load(row_ptr + cols, mask=cols < pitch, other=0.0).to(tl.float32)
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
                x = tl.load(row_ptr + cols, mask=cols < pitch, other=0.0).to(tl.float32)
                gradient = tl.exp(x - peak) * scale - (cols == label).to(tl.float32)
                gradient = tl.where(cols < V, gradient, 0.0)
                tl.store(row_ptr + cols, gradient.to(row_ptr.dtype.element_ty), mask=cols < pitch)


@triton.jit(do_not_specialize=["M", "rows_per_group"])
def _column_sums_kernel(dlogits_ptr, partial_ptr, M, pitch, rows_per_group, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    """partial[group, v] = sum of dlogits[row, v] over the rows of the group."""
    group = tl.program_id(1)
    cols = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    end = tl.minimum((group + 1) * rows_per_group, M)
    for start in range(group * rows_per_group, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        mask = (rows < end)[:, None] & (cols < pitch)[None, :]
        acc += tl.load(dlogits_ptr + rows.to(tl.int64)[:, None] * pitch + cols[None, :], mask=mask, other=0.0)
    tl.store(partial_ptr + group.to(tl.int64) * pitch + cols, tl.sum(acc, axis=0), mask=cols < pitch)


@triton.jit(do_not_specialize=["M"])
def _loss_kernel(losses_ptr, labels_ptr, loss_ptr, scale_ptr, M, ignore_index, IS_MEAN: tl.constexpr, BLOCK_M: tl.constexpr):
    """The sum or mean of the rows' losses, added in float64; scale: 1, or 1 / count for a mean."""
    offs = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M], tl.float64)
    labelled = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, M, BLOCK_M):
        rows = start + offs
        acc += tl.load(losses_ptr + rows, mask=rows < M, other=0.0).to(tl.float64)
        labelled += (tl.load(labels_ptr + rows, mask=rows < M, other=ignore_index) != ignore_index).to(tl.int32)
    loss = tl.sum(acc, axis=0)
    count = tl.sum(labelled, axis=0)
    if IS_MEAN:
        loss = tl.where(count > 0, loss / tl.maximum(count, 1).to(tl.float64), float("nan"))
        tl.store(scale_ptr, 1.0 / tl.maximum(count, 1).to(tl.float64))
    else:
        tl.store(scale_ptr, 1.0)
    tl.store(loss_ptr, loss.to(tl.float32))


@triton.jit
def _scaled_kernel(x_ptr, grad_ptr, scale_ptr, out_ptr, numel, BLOCK: tl.constexpr):
    """out = x * grad * scale. float32 is rounded once: softmax - onehot is often exact, its roundings would show."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(grad_ptr) * tl.load(scale_ptr)
    x = tl.load(x_ptr + offs, mask=offs < numel, other=0.0)
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


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    on_triton, config = side("linear", hidden.shape[0], weight.shape, hidden, (weight,))
    if on_triton:
        return gemm_fwd(hidden, [weight], [bias], None, False, config=config)[0]
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.mm(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())


def _float32_mm(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype == torch.float32:
            return torch.mm(a, b)
        return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def _dhidden(dlogits: Tensor, weight: Tensor, want: bool) -> Tensor:
    """dlogits @ weight in float32; empty where not wanted."""
    if not want:
        return dlogits.new_empty((0, weight.shape[1]), dtype=torch.float32)
    on_triton, config = side("dgrad", dlogits.shape[0], weight.shape, weight)
    if on_triton:
        return gemm_dgrad(dlogits, [weight], out_dtype=torch.float32, config=config)[0]
    return _float32_mm(dlogits, weight)


def _ddecoder(dlogits: Tensor, hidden: Tensor, weight: Tensor, want_weight: bool, want_bias: bool) -> tuple[Tensor, Tensor]:
    """dlogits.T @ hidden and the sum of dlogits over the rows, in float32; empty where not wanted."""
    on_triton, config = side("wgrad", dlogits.shape[0], weight.shape, weight)
    if want_weight and on_triton:
        return gemm_wgrad(dlogits, hidden, want_bias, out_dtype=torch.float32, config=config)
    empty = dlogits.new_empty((0, hidden.shape[1]), dtype=torch.float32)
    dweight = _float32_mm(dlogits.t(), hidden) if want_weight else empty
    return dweight, _column_sum(dlogits) if want_bias else empty.view(-1)


def _column_sum(dlogits: Tensor) -> Tensor:
    """The sum over the rows, in float32."""
    M, pitch = dlogits.shape
    rows_per_group = cdiv(cdiv(M, COLUMN_SUM_GROUPS), 16) * 16
    groups = cdiv(M, rows_per_group)
    partial = torch.empty((groups, pitch), dtype=torch.float32, device=dlogits.device)
    _column_sums_kernel[(cdiv(pitch, 256), groups)](
        dlogits, partial, M, pitch, rows_per_group, BLOCK_M=16, BLOCK_V=256, num_warps=4
    )
    return sum_partials(partial, torch.float32)


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
        logits = _logits(hidden[rows], weight, bias)
        _cross_entropy_rows_kernel[(logits.shape[0],)](
            logits, labels[rows], losses[rows], V, pitch, ignore_index,
            WRITE_GRADIENT=want_hidden or want_weight or want_bias, BLOCK_V=block_v,
            num_warps=max(block_v * ROW_WARPS // BLOCK_V, 1),
        )  # fmt: skip
        dhiddens.append(_dhidden(logits, weight, want_hidden))
        shares = _ddecoder(logits, hidden[rows], weight, want_weight, want_bias)
        decoder = tuple(total.add_(share) for total, share in zip(decoder, shares)) if decoder else shares
        del logits  # before the next chunk's are made
    return dhiddens[0] if len(dhiddens) == 1 else torch.cat(dhiddens), *decoder


def _cross_entropy_fwd(hidden, weight, bias, labels, ignore_index, is_mean, want_hidden, want_weight, want_bias):
    M, V = hidden.shape[0], weight.shape[0]
    losses = torch.empty((M,), dtype=torch.float32, device=hidden.device)
    loss, scale, *gradients = _cross_entropy_fwd_fake(
        hidden, weight, bias, labels, ignore_index, is_mean, *((False,) * 3 if M else (want_hidden, want_weight, want_bias))
    )
    if M == 0:
        dhidden, dweight, dbias = (gradient.zero_() for gradient in gradients)
    else:
        dhidden, dweight, dbias = _chunks(
            hidden, weight, bias, labels, ignore_index, losses, want_hidden, want_weight, want_bias
        )
    _loss_kernel[(1,)](losses, labels, loss, scale, M, ignore_index, IS_MEAN=is_mean, BLOCK_M=1024, num_warps=4)
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
            _scaled_kernel[(cdiv(x.numel(), 4096),)](x, grad, scale, out, x.numel(), BLOCK=4096, num_warps=8)
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
    made = (want_hidden, want_weight, want_bias)
    if any(x is not None and x.requires_grad and not want for x, want in zip((hidden, weight, bias), made)):
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
    hidden, weight = (x if x.stride(-1) == 1 else x.contiguous() for x in (hidden, weight))
    return cross_entropy_fwd(hidden, weight, bias, labels.contiguous(), ignore_index, reduction == "mean", *wants)[0]


# What the operation says of itself: samples, costs, shipped variants.


def _sample(
    name, M, N, V, *, has_bias=True, labelled=1.0, ignore_index=-100, reduction="mean", hidden_shift=0.0, bias_shift=0.0,
    huge=0.0, row_pad=0, seed=0,
) -> Sample:  # fmt: skip
    """labelled: share of rows with a label. huge: added to the bias of one column."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        labels = torch.randint(0, V, (M,), generator=g)
        labels[torch.rand(M, generator=g) >= labelled] = ignore_index
        bias = None
        if has_bias:
            bias = normal((V,), dtype, device, g, mean=bias_shift)
            bias[V // 2] += huge
        return {
            "hidden": normal((M, N + row_pad), dtype, device, g, mean=hidden_shift)[:, :N],
            "weight": normal((V, N), dtype, device, g, std=2 * N**-0.5 / (1 + hidden_shift)),
            "bias": bias,
            "labels": labels.to(device),
            "ignore_index": ignore_index,
            "reduction": reduction,
        }

    return Sample(name, make)


_SAMPLES = (
    _sample("several-chunks", 40, 24, 1003),  # V not a multiple of 8
    _sample("one-row", 1, 64, 50),
    _sample("tiny-vocabulary", 13, 33, 7),
    _sample("vocabulary-of-two-blocks", 2, 16, 4200, reduction="sum"),
    _sample("one-class", 6, 24, 1),  # the loss is 0
    _sample("no-rows", 0, 96, 30, reduction="sum"),
    _sample("without-bias", 21, 100, 130, has_bias=False),
    _sample("ignored", 50, 64, 77, labelled=0.3),
    _sample("ignored-class", 50, 64, 9, ignore_index=3),
    _sample("shifted", 300, 16, 64, bias_shift=100.0),
    _sample("shifted-hidden", 60, 64, 300, hidden_shift=100.0),
    _sample("one-huge-logit", 17, 64, 300, huge=1000.0),
    _sample("padded-rows", 11, 160, 90, row_pad=24),
)


def _fuzz(rng: random.Random) -> Sample:
    """No bias_shift: logits of 100 are rounded so coarsely that whose loss is nearer is luck, where rows are few."""
    M, N, V = rng.randint(1, 40), rng.randint(1, 120), rng.choice((rng.randint(1, 40), rng.randint(40, 800)))
    return _sample(
        f"fuzz-{M}-{N}-{V}", M, N, V, has_bias=rng.random() < 0.8, reduction=rng.choice(("mean", "sum")),
        hidden_shift=rng.choice((0.0, 0.0, 0.0, 100.0)), huge=rng.choice((0.0, 0.0, 1000.0)), row_pad=rng.choice((0, 0, 1, 8)),
        seed=rng.randint(0, 1 << 30),
    )  # fmt: skip


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("workload", work.tokens, work.hidden_size, work.vocab_size, labelled=0.15).make(dtype, device)


def _labelled(inputs: Inputs) -> int:
    return int((inputs["labels"] != inputs["ignore_index"]).sum())


def _flops(inputs: Inputs, backward: bool) -> int:
    """The products. The gradients' are counted as backward, though this forward already makes them."""
    V, N = inputs["weight"].shape
    return (4 if backward else 2) * _labelled(inputs) * V * N


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    """hidden at the labelled rows, the decoder and, backward, the gradients of both. Logits need not leave the chip."""
    N = inputs["weight"].shape[1]
    rows = _labelled(inputs) * N * inputs["hidden"].element_size()
    once = rows + nbytes(inputs["weight"], inputs["bias"], inputs["labels"])
    return 2 * once if backward else once


def _variants() -> list[KernelVariant]:
    variants = []
    for dtype in ("bf16", "fp32"):
        p = f"*{dtype}"
        variants += [
            KernelVariant(
                f"cross_entropy rows {dtype}{' with gradient' if gradient else ''}", _cross_entropy_rows_kernel,
                dict(logits_ptr=p, labels_ptr="*i64", losses_ptr="*fp32", V="i32", pitch="i32", ignore_index="i32"),
                dict(WRITE_GRADIENT=gradient, BLOCK_V=BLOCK_V), num_warps=ROW_WARPS, divisible=("pitch",),
            )
            for gradient in (False, True)
        ]  # fmt: skip
        variants += [
            KernelVariant(
                f"column_sums {dtype}", _column_sums_kernel,
                dict(dlogits_ptr=p, partial_ptr="*fp32", M="i32", pitch="i32", rows_per_group="i32"),
                dict(BLOCK_M=16, BLOCK_V=256), num_warps=4, divisible=("pitch", "rows_per_group"),
            ),
            KernelVariant(
                f"scaled {dtype}", _scaled_kernel,
                dict(x_ptr="*fp32", grad_ptr="*fp32", scale_ptr="*fp64", out_ptr=p, numel="i32"), dict(BLOCK=4096), num_warps=8,
                divisible=("numel",),
            ),
        ]  # fmt: skip
    for variant in (*dgrad_variants(), *wgrad_variants(want_sum=True)):
        if variant.signature.get("dy_ptr") != "*fp32":
            out = "dx_ptr" if "dx_ptr" in variant.signature else "dweight_ptr"
            signature = {**variant.signature, out: "*fp32"}
            variants.append(replace(variant, name=f"{variant.name} to fp32", signature=signature))
    variants.append(
        KernelVariant(
            "loss", _loss_kernel,
            dict(losses_ptr="*fp32", labels_ptr="*i64", loss_ptr="*fp32", scale_ptr="*fp64", M="i32", ignore_index="i32"),
            dict(IS_MEAN=True, BLOCK_M=1024), num_warps=4,
        )
    )  # fmt: skip
    return variants


SPECS = (
    OperationSpec(
        name="cross_entropy",
        function=functional.cross_entropy,
        reference=reference.cross_entropy_ref,
        differentiable=("hidden", "weight", "bias"),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_variants,
    ),
)
