"""The codegen table's rows of attention are what its launchers compile: each launch is a row, and each row is launched."""

import inspect
import random
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from fastbert.kernels.backend import use_backend
from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.device import pretend
from fastbert.kernels.functional import attention
from fastbert.kernels.specs.attention_variants import COMPLETE_TARGETS, HEAD_DIMS, variants
from fastbert.kernels.specs.spec import seed_tensor
from tests.kernels.attention.batches import bounds_of

TYPES = {torch.int32: "i32", torch.int64: "i64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CPU = torch.device("cpu")
KINDS = ((torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"))


def row_of(variant):
    return written(variant.kernel, dict(variant.signature), dict(variant.constexprs), variant.num_warps, variant.num_stages)


def written(kernel, signature, constexprs, num_warps, num_stages):
    arguments = {name: str(value) for name, value in sorted((signature | constexprs).items())}
    return f"{kernel.__name__} {num_warps} warps {num_stages} stages {arguments}"


def launch_of(kernel, args, options):
    """What Triton would compile, as a row; AssertionError for a value that would be compiled for and is in no row."""
    values = dict(zip(kernel.arg_names, args)) | options
    plain = kernel.kwargs["do_not_specialize"] if isinstance(kernel, InterpretedFunction) else kernel.do_not_specialize
    signature, constexprs = {}, {}
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        value, annotation = values[name], str(parameter.annotation)
        if "constexpr" in annotation or value is None:
            constexprs[name] = value
        elif isinstance(value, torch.Tensor):
            assert value.data_ptr() % 16 == 0, f"{kernel.__name__}: {name} does not start at a multiple of 16 bytes"
            signature[name] = f"*{TYPES[value.dtype]}"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            assert name in plain, f"{kernel.__name__} would be compiled for values of {name}"
            assert "int64" in annotation or -(2**31) <= value < 2**31
            signature[name] = "i64" if "int64" in annotation else "i32"
    return written(kernel, signature, constexprs, options["num_warps"], options["num_stages"])


@contextmanager
def on(target):
    """As if a GPU of that architecture were there; how float32 is multiplied can be set until the end."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        with pretend(target):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def launched(monkeypatch):
    """The rows of the launches since; no kernel starts."""
    rows = set()

    def run(self, *args, grid, warmup, **options):
        rows.add(launch_of(self, args, options))

    for kind in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(kind, "run", run)
    with use_backend("triton"):
        yield rows


def call(seqlens, max_seqlen, head_dim, dtype, dropout_p, causal, train, *, heads=1, view=None, seqused_k=None):
    """Forward, and backward where `train`."""
    tokens = sum(seqlens)
    qkv = torch.zeros((tokens, 3, heads, head_dim + 1), dtype=dtype)[..., 1:] if view == "odd" else None
    if view == "shifted":
        qkv = torch.zeros(tokens * 3 * heads * head_dim + 1, dtype=dtype)[1:].view(tokens, 3, heads, head_dim)
    qkv = torch.zeros((tokens, 3, heads, head_dim), dtype=dtype) if qkv is None else qkv
    options = dict(dropout_p=dropout_p, seed=seed_tensor(1, CPU)) if dropout_p else {}
    with torch.set_grad_enabled(train):
        out = attention(
            qkv.requires_grad_(train), bounds_of(seqlens), max_seqlen, seqused_k=seqused_k, causal=causal, **options
        )
    if train:
        torch.autograd.grad(out, qkv, {"odd": out.new_zeros(1).expand_as(out), None: out}.get(view, out.detach().clone()))


def batches():
    """Lengths of sequences, few and many tokens to each, for every class of the longest one."""
    for longest in (1, 64, 65, 128, 129, 255, 256, 512):
        yield (longest,), longest
        yield (longest, *(1,) * 2 * (longest // 64 + 1)), longest


@pytest.mark.parametrize("target", COMPLETE_TARGETS)
def test_the_rows_are_the_launches(target, launched):
    with on(target):
        for (dtype, precision), (seqlens, longest) in product(KINDS, batches()):
            torch.backends.cuda.matmul.fp32_precision = precision
            for head_dim, dropout_p, causal, train in product(HEAD_DIMS, (0.0, 0.1), (False, True), (False, True)):
                call(seqlens, longest, head_dim, dtype, dropout_p, causal, train)
        call((3, 70), 70, 64, torch.bfloat16, 0.0, False, False, seqused_k=torch.ones(2, dtype=torch.int32))
    rows = {row_of(one) for one in variants() if not one.targets or target in one.targets}
    of_float16 = {row for row in rows if "*fp16" in row}
    assert of_float16
    assert {row.replace("*fp16", "*bf16") for row in of_float16} <= rows
    assert launched == rows - of_float16


@pytest.mark.parametrize("target", COMPLETE_TARGETS)
def test_random_launches_are_rows(target, launched):
    """Of any batch and any view of its memory. float16 has the tiles of bfloat16."""
    rng = random.Random(0)
    with on(target):
        for _ in range(300):
            dtype, precision = rng.choice((*KINDS, (torch.float16, "ieee")))
            torch.backends.cuda.matmul.fp32_precision = precision
            seqlens = [rng.randint(0, rng.choice((3, 64, 200, 700))) for _ in range(rng.randint(1, 40))]
            longest = max(max(seqlens), 1) + rng.choice((0, 0, 9, 400))
            problem = (seqlens, longest, rng.choice(HEAD_DIMS), dtype, rng.choice((0.0, 0.1)), rng.random() < 0.5)
            train, view = rng.random() < 0.5, rng.choice((None, None, "odd", "shifted"))
            if rng.random() < 0.2:
                with batch_invariant_kernels():
                    call(*problem, train, heads=rng.randint(1, 3), view=view)
            else:
                call(*problem, train, heads=rng.randint(1, 3), view=view)
    rows = {row_of(one) for one in variants() if not one.targets or target in one.targets}
    assert launched
    unknown = {row for row in launched if row.replace("*fp16", "*bf16") not in rows}
    assert not unknown, f"launched, and not in the table: {unknown}"
