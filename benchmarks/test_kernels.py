"""Each operation against plain PyTorch at BERT's shapes, generated from the specs: milliseconds, TFLOP/s, GB/s."""

import pytest
import torch

from fastbert.kernels.accuracy import check_operation, noise
from fastbert.kernels.spec import Workload

MODELS = {"bert-base": (768, 12, 3072), "bert-large": (1024, 16, 4096)}
VOCAB_SIZE, TOKENS = 30522, 16384

pytest.importorskip("triton", reason="Triton is not installed: the specs live beside the kernels")
from fastbert.kernels.specs import ALL_SPECS  # noqa: E402


def workload(model: str, seqlen: int, quick: bool) -> Workload:
    if quick:
        return Workload(hidden_size=64, num_heads=1, intermediate_size=128, vocab_size=1000, seqlens=(16, 5, 30))
    hidden_size, num_heads, intermediate_size = MODELS[model]
    return Workload(hidden_size, num_heads, intermediate_size, VOCAB_SIZE, (seqlen,) * (TOKENS // seqlen))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("seqlen", [128, 512])
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_operation_against_pytorch(spec, model, seqlen, backward, side_by_side, quick, device, benchmark):
    if device.type == "cpu" and not quick:
        pytest.skip("kernels run on a GPU; on a CPU --quick checks that this benchmark runs")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    small = Workload(hidden_size=128, num_heads=2, intermediate_size=256, vocab_size=1000, seqlens=(seqlen, 17))
    wrong = [str(a) for a in check_operation(spec, spec.workload(small, dtype, device), dtype) if not a.passed]
    assert not wrong, wrong  # red: no number

    inputs = spec.workload(workload(model, seqlen, quick), dtype, device)
    differentiable = tuple(name for name in spec.differentiable if name in inputs) if backward else ()
    leaves = [t for name in differentiable for t in (inputs[name] if isinstance(inputs[name], tuple) else (inputs[name],))]
    for leaf in leaves:
        leaf.requires_grad_()
    reference_inputs = spec.reference_inputs(inputs)

    def step(function, arguments):
        out = function(**arguments)
        if backward:
            torch.autograd.grad(out, leaves, noise_like.setdefault("dy", noise(out)))

    noise_like: dict[str, torch.Tensor] = {}
    side_by_side(
        lambda: step(spec.reference, reference_inputs),
        lambda: step(spec.function, inputs),
        rounds=1 if quick else 30,
        conditions=f"{model}, {TOKENS} tokens of length {seqlen}, {str(dtype).removeprefix('torch.')}, baseline PyTorch eager",
    )
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        directions = (False, True) if backward else (False,)
        flops, moved = (sum(count(inputs, d) for d in directions) for count in (spec.flops, spec.bytes_moved))
        benchmark.extra_info.update(tflops_per_s=flops / seconds / 1e12, gbytes_per_s=moved / seconds / 1e9)
