"""The rows of the codegen table are launches: as Triton compiles them, and every launch that operations and BERT make."""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: no kernel is launched")

from fastbert.kernels.matmul.choose import use_gemm
from fastbert.kernels.specs.launches import identity, pairs, written_down
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.kernels.specs.spec import KernelVariant
from tests.compiled.plan import variants_of

ROOT = Path(__file__).resolve().parents[3]
SPECS = [spec for spec in ALL_SPECS if spec.name != "attention"]  # whose rows come from its own problems


def shipped(target: str) -> list[KernelVariant]:
    return [variant for spec in SPECS for variant in variants_of(spec) if target in variant.targets]


AS_TRITON_DOES = """
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature
    from fastbert.kernels import functional
    from fastbert.kernels.specs import launches
    from fastbert.kernels.specs import embedding, layer_norm, matmul

    ours, backend, compared = launches.launch_of, make_backend(GPUTarget("cuda", 90, 32)), 0

    def launch_of(kernel, args, options, target):
        global compared
        found = ours(kernel, args, options, target)
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, parsed = binder(*args, **options)
        parsed, signature, constexprs, attributes = kernel._pack_args(backend, options, bound, specialization, parsed)
        names = kernel.arg_names
        assert {n: kind for n, kind in signature.items() if kind != "constexpr"} == dict(found.signature), (signature, found)
        assert {names[path[0]]: value for path, value in constexprs.items()} == dict(found.constexprs), (constexprs, found)
        divisible = {n for n, kind in found.signature.items() if kind[0] == "*" and n not in found.unaligned}
        assert {names[path[0]] for path, value in attributes.items() if value} == divisible | {*found.divisible}
        assert (parsed.num_warps, parsed.num_stages, parsed.maxnreg) == (found.num_warps, found.num_stages, found.maxnreg)
        compared += 1
        return found

    launches.launch_of = launch_of
    def attention():
        options = dict(dropout_p=0.1, seed=torch.zeros(1, dtype=torch.int64))
        bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
        for seqlens, head_dim, dtype in (((40, 3), 64, bf16), ((300, 1), 24, fp16), ((130,), 128, fp32)):
            bounds = torch.tensor([0, *seqlens]).cumsum(0, dtype=torch.int32)
            qkv = torch.zeros(int(bounds[-1]), 3, 2, head_dim, dtype=dtype, requires_grad=True)
            out = functional.attention(qkv, bounds, max(seqlens), **options)
            torch.autograd.grad(out, qkv, torch.zeros_like(out))

    with launches.written_down("sm_90") as found:
        attention()
    assert len(found) > 8, found
    for points in (layer_norm._points, embedding._points, matmul.pass_points, matmul.any_points):
        for number, point in enumerate(points("sm_90")):
            if number < 30 or number % 23 == 0:
                with launches.written_down("sm_90", point.precision, point.multiprocessors):
                    point.call()
    print("compared", compared)
"""


def test_a_launch_is_written_down_as_triton_would_compile_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(AS_TRITON_DOES))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script)]
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 200


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_what_a_random_problem_chooses_comes_together_in_rows(target, request):
    known: dict[str, set[Any]] = {}
    for variant in shipped(target):
        known.setdefault(variant.kernel.__name__, set()).update(pairs(variant))
    rng = random.Random(11)
    count = 0
    for _ in range(request.config.getoption("--fuzz") or 15):
        for spec in SPECS:
            if spec.name == "fp8_linear" and target == "sm_80":
                continue
            dtype = rng.choice((torch.bfloat16, torch.float16, torch.float32))
            inputs = spec.fuzz(rng).make(dtype, torch.device("cpu"))
            leaves = [leaf for name in spec.differentiable for leaf in tensors_of(inputs.get(name))]
            for leaf in leaves:
                leaf.requires_grad_(rng.random() < 0.7)
            side = rng.choice(("auto", "triton", "library"))
            with written_down(target, rng.choice(("ieee", "tf32"))) as launches, use_gemm(side):
                out = spec.function(**inputs)
                if wanted := [leaf for leaf in leaves if leaf.requires_grad]:
                    torch.autograd.grad(out, wanted, torch.zeros_like(out), allow_unused=True)
            for launch in launches:
                count += 1
                name = launch.kernel.__name__
                missing = pairs(launch) - known[name]
                if missing:  # an assertion on the sets would print them all
                    pytest.fail(f"{name} {launch.signature} {launch.divisible} {launch.unaligned}: no row has {missing}")
    assert count > 50


def tensors_of(value) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_launch_of_bert_is_a_row(target):
    """A layer of BERT-base's sizes in bfloat16 with its embedding and its language-model head, attention apart."""
    from transformers import BertConfig

    from fastbert.modeling_bert import BertForMaskedLM

    config = BertConfig(num_hidden_layers=1, vocab_size=30522, attn_implementation="eager")
    model = BertForMaskedLM(config).to(torch.bfloat16)
    ids = torch.full((2, 40), 7)
    labels = torch.full((2, 40), -100)
    labels[:, ::7] = 7
    rows = {identity(variant) for variant in shipped(target)}
    for training in (False, True):
        model.train(training)
        with written_down(target) as launches, torch.set_grad_enabled(training):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            if training:
                loss.backward()
        others = [launch for launch in launches if "attention" not in launch.kernel.__name__]
        names = {launch.kernel.__name__ for launch in others}
        assert {"embedding_fwd_kernel", "layer_norm_fwd_kernel"} <= names
        assert not training or {"layer_norm_bwd_kernel", "embedding_bwd_kernel"} <= names
        own = ("tile_lists_kernel", "packs_kernel", "spans_kernel")
        missing = [launch for launch in others if identity(launch) not in rows and launch.kernel.__name__ not in own]
        if missing:
            pytest.fail("\n".join(f"no row for {identity(launch)}" for launch in missing))
