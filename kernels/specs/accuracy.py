"""How right an operation is: three runs on the same rounded inputs, ours, PyTorch in that dtype, PyTorch in float64.

Ours may err at most `factor` times what PyTorch errs in that dtype, against float64, plus half a unit in the last place of
the largest value: the rounding of the store, which the best implementation cannot escape and which PyTorch sometimes does
by luck. Tests assert it, `fastbert verify` prints it. Imports no Triton.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import Inputs, OperationSpec

OUT_FACTOR = 2.0


@dataclass(frozen=True)
class Accuracy:
    """error, torch_error: largest absolute difference from float64, ours and PyTorch's. allowed: what ours may be."""

    name: str
    error: float
    torch_error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN

    @property
    def ratio(self) -> float:
        """Our error over PyTorch's; 0 where both are exact."""
        if self.error == 0:
            return 0.0
        return self.error / self.torch_error if self.torch_error else math.inf

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3e}, PyTorch's {self.torch_error:.3e}, allowed {self.allowed:.3e}"


def measure(
    name: str, ours: Tensor, same_dtype: Tensor, exact: Tensor, factor: float, *, summed_rows: int = 0, scale: float = 0.0
) -> Accuracy:
    """Compares one tensor of the three runs.

    summed_rows: where ours and PyTorch add this many rows in float32 in different orders (packed and padded batches are cut
    among threads differently), either may be the luckier one: the limit grows by the square root of their number, in
    units of float32's last place. scale: size of the summands where the sum itself cancels to zero.
    Raises ValueError where the shapes differ.
    """
    if ours.shape != exact.shape:
        raise ValueError(f"{name}: expected shape {tuple(exact.shape)}, got {tuple(ours.shape)}")
    if exact.numel() == 0:
        return Accuracy(name, 0.0, 0.0, 0.0)
    exact = exact.double()
    error, torch_error = ((run.to(exact.device).double() - exact).abs().max().item() for run in (ours, same_dtype))
    largest = max(exact.abs().max().item(), scale)
    floor = (0.5 * torch.finfo(ours.dtype).eps + summed_rows**0.5 * torch.finfo(torch.float32).eps) * largest
    return Accuracy(name, error, torch_error, factor * torch_error + floor)


def tensors_of(value) -> list:
    return list(value) if isinstance(value, tuple | list) else [value]


def run(
    function: Callable[..., Tensor],
    inputs: Inputs,
    differentiable: tuple[str, ...],
    dtype: torch.dtype | None = None,
    make_dy: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The output as 'out' and the gradient of each differentiable input as 'd<name>' ('d<name>0' … for a tuple).

    dtype: what floating-point inputs are cast to first; None keeps them, strides included. make_dy: the gradient of the
    output, from the output; None leaves gradients out.
    """
    leaves: dict[str, list[Tensor]] = {}
    arguments: Inputs = {}
    for name, value in inputs.items():
        cast = [
            t.detach().to(dtype) if isinstance(t, Tensor) and dtype is not None and t.is_floating_point()
            else t.detach() if isinstance(t, Tensor) else t
            for t in tensors_of(value)
        ]  # fmt: skip
        if name in differentiable and all(isinstance(t, Tensor) for t in cast):
            leaves[name] = [t.requires_grad_() for t in cast]
        arguments[name] = tuple(cast) if isinstance(value, tuple | list) else cast[0]
    out = function(**arguments)
    results = {"out": out.detach()}
    if make_dy is not None and leaves:
        out.backward(make_dy(out.detach()).to(out.dtype))
        for name, tensors in leaves.items():
            for place, tensor in enumerate(tensors):
                key = f"d{name}{place}" if len(tensors) > 1 else f"d{name}"
                if tensor.grad is None:
                    raise AssertionError(f"{key} is None")
                results[key] = tensor.grad
    return results


def noise(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)


def noise_rounded_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The same gradient for all three runs: rounded to the kernel's dtype before anyone widens it."""
    return lambda out: noise(out).to(dtype).to(out.dtype)


def check_operation(
    spec: OperationSpec,
    inputs: Inputs,
    dtype: torch.dtype,
    make_dy: Callable[[Tensor], Tensor] | None = None,
    *,
    summed_rows: int = 0,
) -> list[Accuracy]:
    """The accuracy of the output and of every gradient of one operation on one set of inputs of that dtype.

    summed_rows: as in `measure`.
    """
    make_dy = noise_rounded_to(dtype) if make_dy is None else make_dy
    differentiable = tuple(name for name in spec.differentiable if name in inputs)
    reference_inputs = spec.reference_inputs(inputs)
    ours = run(spec.function, inputs, differentiable, None, make_dy)
    same_dtype = run(spec.reference, reference_inputs, differentiable, dtype, make_dy)
    exact = run(spec.reference, reference_inputs, differentiable, torch.float64, make_dy)
    if ours["out"].dtype != same_dtype["out"].dtype:
        raise AssertionError(f"{spec.name}: expected an output of {same_dtype['out'].dtype}, got {ours['out'].dtype}")
    return [
        measure(
            name,
            ours[name],
            same_dtype[name],
            exact[name],
            OUT_FACTOR if name == "out" else spec.grad_factor,
            summed_rows=summed_rows,
        )
        for name in ours
    ]
