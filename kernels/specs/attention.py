"""Spec of attention: samples, reference inputs and costs."""

import random
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import functional, reference
from ..attention.blocks import dropout_keep
from ..device import cdiv
from ..dropout import scale, threshold
from . import baselines
from .attention_variants import variants
from .spec import Inputs, OperationSpec, Sample, Workload, generator, nbytes, seed_tensor


def _sample(
    name: str,
    seqlens: tuple[int, ...],
    *,
    heads: int = 1,
    head_dim: int = 16,
    seqused_k: tuple[int, ...] | None = None,
    max_seqlen: int | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    value_shift: float = 0.0,
    layout: str = "packed",
    seed: int = 0,
) -> Sample:
    """One sample; layout is that of qkv in memory.

    'packed'; 'wide', a slice of a buffer with more heads and a larger head_dim; 'heads_first', strides of (3, H, T, D). Off
    multiples of 16 bytes: 'odd', with one element between rows; 'shifted', packed from the second element of a buffer on.
    """

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        T, D = sum(seqlens), head_dim
        shape = {
            "packed": (T, 3, heads, D),
            "wide": (T, 3, heads + 1, D + 24),
            "heads_first": (3, heads, T, D),
            "odd": (T, 3, heads, D + 1),
            "shifted": (1 + T * 3 * heads * D,),
        }
        buffer = torch.randn(shape[layout], generator=generator(seed))
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "packed": lambda x: x,
            "wide": lambda x: x[:, :, 1:, 8 : 8 + D],
            "heads_first": lambda x: x.permute(2, 0, 1, 3),
            "odd": lambda x: x[..., :D],
            "shifted": lambda x: x[1:].view(T, 3, heads, D),
        }
        view = views[layout]
        view(buffer)[:, 2] += value_shift
        bounds = [0, *torch.tensor(seqlens).cumsum(0).tolist()]
        inputs = {
            "qkv": view(buffer.to(dtype=dtype, device=device)),
            "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device),
            "max_seqlen": max(seqlens, default=0) if max_seqlen is None else max_seqlen,
            "softmax_scale": softmax_scale,
            "causal": causal,
        }
        if seqused_k is not None:
            inputs["seqused_k"] = torch.tensor(seqused_k, dtype=torch.int32, device=device)
        if dropout_p:
            inputs |= {"dropout_p": dropout_p, "seed": seed_tensor(4321 + seed, device), "stream": 3}
        return inputs

    return Sample(name, make)


SAMPLES = (
    _sample("mixed-lengths", (1, 17, 63, 64, 65, 127, 128, 129, 200)),
    _sample("mixed-lengths-causal-dropout", (1, 17, 64, 65, 129, 200), causal=True, dropout_p=0.1),
    _sample("up-to-64", (33, 1, 64, 17), heads=2, head_dim=64),
    _sample("up-to-64-causal-dropout", (33, 64, 5), heads=2, head_dim=32, causal=True, dropout_p=0.2),
    _sample("up-to-128", (65, 3, 127, 128), head_dim=32),
    _sample("up-to-128-causal", (100, 128, 1), causal=True),
    _sample("up-to-128-dropout", (64, 128, 70), dropout_p=0.5),
    _sample("long", (512, 65)),
    _sample("long-dropout", (129, 300), dropout_p=0.1),
    _sample("one-token", (1,), heads=3),
    _sample("no-tokens", (0,)),
    _sample("an-empty-sequence", (40, 0, 7, 0)),
    _sample("head-dim-24", (50, 64), head_dim=24, heads=2),
    _sample("head-dim-24-dropout", (70, 131), head_dim=24, dropout_p=0.1),
    _sample("head-dim-40-causal", (140, 9), head_dim=40, causal=True),
    _sample("head-dim-56-up-to-128-dropout", (66, 80), head_dim=56, dropout_p=0.1),
    _sample("head-dim-72-causal", (40, 70), head_dim=72, causal=True),
    _sample("head-dim-64", (70, 20, 129), head_dim=64),
    _sample("head-dim-80-dropout", (66, 130), head_dim=80, dropout_p=0.1),
    _sample("head-dim-88-causal-dropout", (130, 9), head_dim=88, causal=True, dropout_p=0.1),
    _sample("head-dim-120", (129, 66), head_dim=120),
    _sample("head-dim-128", (129, 30), head_dim=128),
    _sample("head-dim-128-up-to-64-dropout", (30, 60), head_dim=128, dropout_p=0.1),
    _sample("values-shifted", (30, 200), head_dim=64, value_shift=100.0),
    _sample("sharp", (150, 40), head_dim=64, softmax_scale=1.5),
    _sample("slice-of-a-wider-buffer", (17, 140), heads=2, layout="wide"),
    _sample("tokens-inside-heads", (64, 130), heads=2, layout="heads_first", dropout_p=0.1),
    _sample("rows-off-16-bytes", (17, 130), heads=2, head_dim=24, layout="odd"),
    _sample("a-start-off-16-bytes", (33, 20), heads=2, layout="shifted", causal=True),
    _sample("unused-keys", (40, 64, 65, 129, 30, 200), seqused_k=(0, 64, 1, 70, 29, 128)),
    _sample("unused-keys-up-to-64", (20, 64, 9), seqused_k=(0, 33, 9), causal=True),
    _sample("unused-keys-up-to-128-dropout", (100, 64, 128, 90), seqused_k=(100, 0, 65, 64), dropout_p=0.1),
    _sample("shared-by-many-one-token-sequences", (1,) * 70, heads=2),
    _sample("shared", (63, 1, 33, 33, 0, 0, 31, 64, 2, 20), head_dim=32),
    _sample(
        "shared-wide-causal-dropout", (9, 30, 1, 24, 17, 40), heads=2, head_dim=40, layout="wide", causal=True, dropout_p=0.2
    ),
    _sample("shared-heads-first-dropout", (3, 21, 40, 60, 5), heads=2, layout="heads_first", dropout_p=0.5),
    _sample("shared-unused-keys-dropout", (20, 0, 30, 14, 50, 9), seqused_k=(20, 0, 0, 5, 50, 1), causal=True, dropout_p=0.1),
    _sample("short-ones-among-long", (5, 40, 70, 3, 9, 2, 0, 1), max_seqlen=200, dropout_p=0.1),
    _sample("short-ones-among-up-to-128", (5, 40, 0, 80, 3), seqused_k=(5, 0, 0, 70, 2), causal=True),
    _sample("max-seqlen-beyond-the-longest", (5, 40, 90), max_seqlen=1000),
    _sample("all-dropped", (9, 20), dropout_p=1.0),
)


def _fuzz(rng: random.Random) -> Sample:
    longest = rng.choice((64, 64, 128, 260))
    seqlens = tuple(rng.choice((rng.randint(0, longest), rng.randint(0, 9))) for _ in range(rng.randint(1, 5)))
    seqlens += tuple(rng.randint(0, 40) for _ in range(rng.choice((0, 0, rng.randint(1, 9)))))
    seqused_k = tuple(rng.randint(0, seqlen) for seqlen in seqlens) if rng.random() < 0.25 else None
    head_dim, causal, dropout_p = 8 * rng.randint(2, 16), rng.random() < 0.3, rng.choice((0.0, 0.0, 0.1, 0.5))
    return _sample(
        f"fuzz-{seqlens}-D{head_dim}{'-causal' * causal}-p{dropout_p}",
        seqlens,
        heads=rng.randint(1, 3),
        head_dim=head_dim,
        seqused_k=seqused_k,
        max_seqlen=max(seqlens) + rng.choice((0, 0, 1, 70)),
        causal=causal,
        dropout_p=dropout_p,
        layout=rng.choice(("packed", "packed", "wide", "heads_first", "odd", "shifted")),
        seed=rng.randint(0, 1 << 30),
    )


def dropout_mask(heads: int, tokens: int, max_seqlen: int, dropout_p: float, seed: Tensor, stream: int) -> Tensor:
    """The multiplier on each attention probability, 0 or the scale: float32 (heads, tokens, max_seqlen).

    Keys are counted from the start of the query's sequence.
    """
    mask = torch.empty((heads, tokens, max_seqlen), dtype=torch.float32, device=seed.device)
    if mask.numel():
        _dropout_mask_kernel[(heads, cdiv(tokens, 16), cdiv(max_seqlen, 64))](
            seed, mask, tokens, max_seqlen, threshold(dropout_p), scale(dropout_p), stream, ROWS=16, KEYS=64
        )
    return mask


@triton.jit
def _dropout_mask_kernel(
    seed_ptr, mask_ptr, T, max_seqlen, keep_threshold, keep_scale, stream, ROWS: tl.constexpr, KEYS: tl.constexpr
):
    head, first_token, first_key = tl.program_id(0), tl.program_id(1) * ROWS, tl.program_id(2) * KEYS
    seed = tl.load(seed_ptr)  # scalar
    keep = dropout_keep(seed, stream, head, first_token, first_key, keep_threshold, ROWS, KEYS)  # [ROWS, KEYS]
    token = (first_token + tl.arange(0, ROWS))[:, None]
    key = (first_key + tl.arange(0, KEYS))[None, :]
    ptrs = mask_ptr + (head.to(tl.int64) * T + token) * max_seqlen + key
    tl.store(ptrs, tl.where(keep, keep_scale, 0.0), mask=(token < T) & (key < max_seqlen))


def _reference_inputs(inputs: Inputs) -> Inputs:
    inputs = dict(inputs)
    max_seqlen = inputs.pop("max_seqlen")
    dropout_p, seed, stream = inputs.pop("dropout_p", 0.0), inputs.pop("seed", None), inputs.pop("stream", 0)
    if seed is not None:
        tokens, _, heads, _ = inputs["qkv"].shape
        inputs["dropout_mask"] = dropout_mask(heads, tokens, max_seqlen, dropout_p, seed, stream)
    return inputs


def _summand_scale(inputs: Inputs, dy: Tensor) -> dict[str, float]:
    """The scores' gradient p * (dp - sum(p * dp)) vanishes where a row has one key; dp is dy @ v.T.

    Its summand p * dp has the rounding of p, an exponential, which grows with the score that was rounded before. dq and dk are
    its products with k and q.
    """
    qkv, bounds = inputs["qkv"], inputs["cu_seqlens"].tolist()
    softmax_scale = qkv.shape[-1] ** -0.5 if inputs["softmax_scale"] is None else inputs["softmax_scale"]
    used = inputs["seqused_k"].tolist() if "seqused_k" in inputs else [end - start for start, end in zip(bounds, bounds[1:])]
    largest = 0.0
    for start, end, num_keys in zip(bounds, bounds[1:], used):
        if num_keys == 0:
            continue
        q, k, v = qkv[start:end].permute(1, 2, 0, 3)  # each (heads, seqlen, head_dim)
        k, v = k[:, :num_keys], v[:, :num_keys]
        scores = softmax_scale * (q @ k.transpose(-1, -2))  # (heads, seqlen, keys)
        if inputs["causal"]:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), float("-inf"))
        dp = dy[start:end].transpose(0, 1) @ v.transpose(-1, -2)
        if "dropout_mask" in inputs:
            dp = dp * inputs["dropout_mask"][:, start:end, :num_keys]
        p = scores.softmax(-1)
        ds = softmax_scale * p * dp.abs() * (1 + torch.where(p > 0, scores.abs(), 0.0))
        largest = max(largest, (ds @ k.abs()).max().item(), (ds.transpose(-1, -2) @ q.abs()).max().item())
    return {"dqkv": largest}


def _prepare(inputs: Inputs) -> Inputs:
    """With the schedule, which a model computes once for all its layers."""
    qkv = inputs["qkv"]
    schedule = functional.attention_schedule(inputs["cu_seqlens"], inputs["max_seqlen"], qkv.shape[0], qkv)
    return inputs | {"schedule": schedule}


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    head_dim = work.hidden_size // work.num_heads
    return _sample("workload", work.seqlens, heads=work.num_heads, head_dim=head_dim).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    """Two products per score forward, five backward."""
    _, _, heads, head_dim = inputs["qkv"].shape
    num_scores = heads * sum(seqlen**2 for seqlen in inputs["cu_seqlens"].diff().tolist())
    return 2 * head_dim * num_scores * (5 if backward else 2)


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    out = nbytes(inputs["qkv"]) // 3
    return (8 if backward else 4) * out  # backward reads qkv, out and dout and writes dqkv


SPECS = (
    OperationSpec(
        name="attention",
        function=functional.attention,
        reference=reference.attention_ref,
        differentiable=("qkv",),
        samples=SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=variants,
        reference_inputs=_reference_inputs,
        grad_factor=3.0,
        summand_scale=_summand_scale,
        prepare=_prepare,
        baseline=baselines.padded_attention,
    ),
)
