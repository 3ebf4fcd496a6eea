"""Each operation against its peers at BERT's shapes, generated from the specs."""

import pytest
import torch

from benchmarks.harness import lengths
from benchmarks.harness.arena import Absent, Candidate, Prepared
from benchmarks.harness.plan import VOCAB_SIZE, KernelCase
from benchmarks.harness.records import Case
from benchmarks.harness.work import MODELS
from benchmarks.peers.kernels import Build, peers
from fastbert.kernels.specs.accuracy import as_list, check_operation, random_gradient
from fastbert.kernels.specs.spec import PeerCall, Workload

pytest.importorskip("triton", reason="Triton is not installed: the specs live beside the kernels")
from fastbert.kernels.specs.registry import ALL_SPECS

ALLOWED = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # ‖out - PyTorch's‖ / ‖PyTorch's‖


def workload(case: KernelCase) -> Workload:
    """Lengths of the mix until the batch has its tokens; the last sequence is cut to fit."""
    seqlens: list[int] = []
    for seqlen in lengths.draw(case.lengths, case.tokens, case.seqlen):
        seqlens.append(min(seqlen, case.tokens - sum(seqlens)))
        if sum(seqlens) == case.tokens:
            break
    size = MODELS[case.model]
    vocab_size = VOCAB_SIZE if case.model != "tiny" else 1000
    return Workload(size["hidden_size"], size["num_attention_heads"], size["intermediate_size"], vocab_size, tuple(seqlens))


class Operation:
    """One operation on one workload: makes a contender of each function that computes it."""

    def __init__(self, spec, case: KernelCase, device: torch.device) -> None:
        self.spec, self.case, self.device, self.dtype = spec, case, device, getattr(torch, case.dtype)
        self.work = workload(case)
        self.inputs = spec.workload(self.work, self.dtype, device)
        self.names = tuple(name for name in spec.differentiable if name in self.inputs)
        if case.direction != "forward":
            for leaf in self.leaves():
                leaf.requires_grad_()
        self.expected: torch.Tensor | None = None

    def leaves(self) -> list[torch.Tensor]:
        return [tensor for name in self.names for tensor in as_list(self.inputs[name]) if tensor is not None]

    def fastbert(self) -> Prepared:
        """Checked against float64 on a small workload by the tests' own rule before anything is timed."""
        width, heads = self.work.hidden_size, self.work.num_heads
        small = Workload(width, heads, self.work.intermediate_size, 1000, (self.case.seqlen, 17))
        found = check_operation(self.spec, self.spec.workload(small, self.dtype, self.device), self.dtype)
        wrong = [str(accuracy) for accuracy in found if not accuracy.passed]
        if wrong:
            return Prepared(lambda: None, "; ".join(wrong))
        return self._prepared(PeerCall(self.spec.function, self.spec.prepare(dict(self.inputs))))

    def peer(self, build: Build) -> Prepared:
        return self._prepared(build())

    def _prepared(self, call: PeerCall) -> Prepared:
        needs_gradients = self.case.direction != "forward"
        leaves = self.leaves() if call.leaves is None else [leaf.requires_grad_(needs_gradients) for leaf in call.leaves]
        function, inputs = call.function, call.inputs
        out = function(**inputs)
        details = call.proof()
        got = (out.detach() if call.kept is None else out.detach()[call.kept]).float()
        if self.expected is None:
            self.expected = got
        error = ((got - self.expected).norm() / self.expected.norm()).item()
        wrong = None
        if not error <= ALLOWED[self.dtype]:
            wrong = f"differs from the baseline by {error:.1e}, allowed {ALLOWED[self.dtype]:.0e}"
        dy = random_gradient(out) if needs_gradients else None

        @torch.no_grad()
        def forward() -> None:
            function(**inputs)

        def backward() -> None:
            torch.autograd.grad(out, leaves, dy, retain_graph=True)

        def both() -> None:
            torch.autograd.grad(function(**inputs), leaves, dy)

        step = {"forward": forward, "backward": backward, "both": both}[self.case.direction]
        return Prepared(step, wrong, details={"difference from the baseline": error, **details})


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_operation(spec, kernel_case, race, device):
    if kernel_case.direction not in spec.directions:
        pytest.skip(f"{spec.name} can be timed {' and '.join(spec.directions)} only")
    if reason := spec.unsupported_reason(device):
        pytest.skip(reason)
    operation = Operation(spec, kernel_case, device)
    candidates = [
        Candidate(name, lambda build=build: operation.peer(build))
        for name, build in peers(spec, operation.inputs, device, kernel_case.modes)
    ]
    candidates.append(Candidate("fastbert", operation.fastbert))
    passes = {"forward": (False,), "backward": (True,), "both": (False, True)}[kernel_case.direction]
    seqlens = operation.work.seqlens
    case = Case(
        suite="kernels",
        model=kernel_case.model,
        dtype=kernel_case.dtype,
        batch_size=len(seqlens),
        seqlen=max(seqlens),
        lengths=kernel_case.lengths,
        real_tokens=sum(seqlens),
        padded_tokens=len(seqlens) * max(seqlens),
        flops=sum(spec.flops(operation.inputs, is_backward) for is_backward in passes),
        bytes_moved=sum(spec.bytes_moved(operation.inputs, is_backward) for is_backward in passes),
        operation=spec.name,
        direction=kernel_case.direction,
    )
    race(case, candidates, kernel=True)


def test_a_peer_that_is_not_there_says_why():
    spec = next(spec for spec in ALL_SPECS if spec.name == "cross_entropy")
    named = dict(peers(spec, {}, torch.device("cpu"), ()))
    with pytest.raises(Absent, match="liger_kernel"):
        named["Liger-Kernel"]()
