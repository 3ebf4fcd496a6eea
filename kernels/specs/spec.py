"""The operation spec: what tests, benchmarks, `verify` and the codegen table need to know of an operation. Imports no Triton.

Each operation's file in this folder ends with `SPECS`, one `OperationSpec` per public function it serves; registry.py lists
them.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Inputs = dict[str, Any]  # keyword arguments of the public function: tensors, tuples of tensors, plain values
Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True)
class Sample:
    """One set of inputs. make(dtype, device) draws them from a fixed seed, rounded once to dtype."""

    name: str
    make: Callable[[torch.dtype, torch.device], Inputs]


@dataclass(frozen=True)
class Workload:
    """A BERT-sized problem for benchmarks: hidden size, heads and vocabulary of a named model, and real lengths."""

    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    seqlens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.seqlens)


@dataclass(frozen=True)
class KernelVariant:
    """One kernel as a launch would compile it.

    kernel: the `triton.jit` function. signature: argument name to Triton type ('*bf16', 'i32', 'fp32', ...). constexprs: the
    rest of the arguments. Pointers get divisibility 16, but for those in `unaligned`, and so do the integers in `divisible`.
    unit: what multiplies, 'tensor' cores, 'scalar' float32 units where products must be exact, or 'memory' where products are
    negligible. older_unit: why a tensor row uses mma.sync on Hopper. added_waits: why the assembler may wait between products
    of a row on Hopper where the kernel does not. spills: why registers may spill. of_bert: whether BERT-base or BERT-large
    launches it. targets: architectures it ships for, all where empty.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int = 2
    maxnreg: int | None = None
    unit: Literal["tensor", "scalar", "memory"] = "memory"
    older_unit: str = ""
    added_waits: str = ""
    spills: str = ""
    divisible: tuple[str, ...] = ()
    unaligned: tuple[str, ...] = ()
    of_bert: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerCall:
    """Another implementation of an operation, built and ready to be timed: `function(**inputs)`.

    name: as benchmarks print it. leaves: what its backward differentiates with respect to; None for the operation's own
    differentiable inputs. kept: index of the rows of its output that the operation returns too (a mask of real tokens where
    it pads), None for all. proof: facts for the record that show it ran as named, asked after the first call.
    """

    function: Callable[..., Tensor]
    inputs: Inputs
    name: str = "PyTorch"
    leaves: tuple[Tensor, ...] | None = None
    kept: Tensor | None = None
    proof: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class OperationSpec:
    """An operation, its reference, and how to test, time and count it.

    function, reference: take the same `Inputs`, but the reference gets `reference_inputs(inputs)`, which replaces seeds by
    the masks the kernel draws from them. differentiable: names of the inputs with a gradient; a name of a tuple means
    every tensor in it. grad_factor: how many times PyTorch's own error a gradient may err (2; 3 for attention).
    summand_scale: how large the float32 summands are of gradients that may cancel to exactly zero, by their name ('dx'), from
    the reference's inputs and the output's gradient, both float64 and not empty (see accuracy.py); None where none cancels.
    samples: ordinary and hostile, small enough for the interpreter. fuzz: a random sample from a random.Random.
    workload: inputs of benchmark size. flops, bytes_moved: of one call on these inputs, forward or (True) backward; bytes
    count each input once and each output once. variants: the kernels as shipped, for the codegen table.
    unsupported_reason: why the kernels of this operation cannot run on a device where others can, or None.

    For benchmarks: directions: what can be timed alone. prepare: the inputs together with what a model computes once for all
    its layers, outside the timed call. baseline: PyTorch's own way, built outside the timed call; None for the reference.
    """

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    differentiable: tuple[str, ...]
    samples: tuple[Sample, ...]
    fuzz: Callable[[random.Random], Sample]
    workload: Callable[[Workload, torch.dtype, torch.device], Inputs]
    flops: Callable[[Inputs, bool], int]
    bytes_moved: Callable[[Inputs, bool], int]
    variants: Callable[[], list[KernelVariant]]
    reference_inputs: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)
    grad_factor: float = 2.0
    summand_scale: Callable[[Inputs, Tensor], Mapping[str, float]] | None = None
    unsupported_reason: Callable[[torch.device], str | None] = field(default=lambda device: None)
    directions: tuple[Direction, ...] = ("forward", "backward", "both")
    prepare: Callable[[Inputs], Inputs] = field(default=lambda inputs: inputs)
    baseline: Callable[[Inputs], PeerCall] | None = None

    def build_baseline(self, inputs: Inputs) -> PeerCall:
        """PyTorch's call on the operation's inputs."""
        if self.baseline is None:
            return PeerCall(self.reference, self.reference_inputs(inputs))
        return self.baseline(inputs)


def normal(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """A normal tensor drawn on the CPU in float32, so that every device and dtype sees the same numbers."""
    return (torch.randn(shape, generator=generator) * std + mean).to(device=device, dtype=dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seed_tensor(value: int, device: torch.device) -> Tensor:
    """An int64 seed of shape (1,), as operations with dropout take it."""
    return torch.tensor([value], dtype=torch.int64, device=device)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of all tensors together; None counts nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
