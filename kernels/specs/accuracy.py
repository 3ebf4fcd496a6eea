"""How accurate an operation is: its error against float64, next to PyTorch's in the same dtype.

Three runs on the same rounded inputs: the operation, PyTorch in that dtype, PyTorch in float64. The operation may err at most
`factor` times as much as PyTorch does in that dtype, plus half a unit in the last place of the largest value: the rounding of
the store, which the best implementation cannot escape and which PyTorch sometimes escapes by luck. Tests assert it,
`fastbert verify` prints it. Imports no Triton.

The rule is one for every device; what it compares with is what the hardware can do. Two things are decided here:

- Where the hardware drops bits, PyTorch in the same dtype drops them too. In tf32 that run is PyTorch in float32 on operands
  cut to tf32, as the unit cuts them, whatever the library of the card does with its own. Where a CPU stands for a GPU, float32
  products are added one after another as a GPU's scalar units do. The reference of fp8_linear adds as an fp8 unit does, in
  its spec. All three are written out in matrix_unit.py.
- A gradient may be a difference that is exactly zero, and PyTorch's may be zero by luck, because both sides are rounded
  alike. Where a multiplication is fused with the addition that follows, one side is not rounded, and what remains is a rounding
  of the summands. PyTorch's share of the limit is never less than half a unit in the last place of float32 of them; a spec says
  how large they are (`summand_scale`), from the inputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import matrix_unit
from .spec import Inputs, OperationSpec

OUT_FACTOR = 2.0


@dataclass(frozen=True)
class Accuracy:
    """The error of one tensor.

    error, torch_error: largest absolute difference from float64, of the operation and of PyTorch in the same dtype. allowed:
    the largest `error` that passes.
    """

    name: str
    error: float
    torch_error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN

    @property
    def ratio(self) -> float:
        """The error over PyTorch's; 0 where both are exact."""
        if self.error == 0:
            return 0.0
        return self.error / self.torch_error if self.torch_error else math.inf

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3e}, PyTorch's {self.torch_error:.3e}, allowed {self.allowed:.3e}"


def compare_with_float64(
    name: str,
    result: Tensor,
    same_dtype: Tensor,
    exact: Tensor,
    factor: float,
    *,
    summed_rows: int = 0,
    scale: float = 0.0,
    float32_scale: float = 0.0,
) -> Accuracy:
    """The accuracy of one tensor.

    result: of the operation. same_dtype, exact: PyTorch's, in the dtype of the result and in float64. factor: how many times
    PyTorch's error is allowed. summed_rows: how many rows the operation and PyTorch add in float32 in different orders (threads
    divide packed and padded batches differently), so that either may be the luckier one: the limit grows by the square root of
    their number, in units of float32's last place. scale: size of the summands where the sum itself cancels to zero and they
    were rounded to the dtype of the result. float32_scale: the same where they were rounded to float32 only.
    Raises ValueError where the shapes differ.
    """
    if result.shape != exact.shape:
        raise ValueError(f"{name}: expected shape {tuple(exact.shape)}, got {tuple(result.shape)}")
    if exact.numel() == 0:
        return Accuracy(name, 0.0, 0.0, 0.0)
    exact = exact.double()
    error, torch_error = (_largest_difference(run, exact) for run in (result, same_dtype))
    largest = max(exact.abs().max().item(), scale)
    float32_eps = torch.finfo(torch.float32).eps
    floor = (0.5 * torch.finfo(result.dtype).eps + summed_rows**0.5 * float32_eps) * largest
    return Accuracy(name, error, torch_error, max(factor * torch_error, 0.5 * float32_eps * float32_scale) + floor)


def _largest_difference(tensor: Tensor, exact: Tensor) -> float:
    return (tensor.to(exact.device).double() - exact).abs().max().item()


def as_list(value) -> list:
    """The elements of a tuple or list, or the value alone."""
    return list(value) if isinstance(value, tuple | list) else [value]


def forward_backward(
    function: Callable[..., Tensor],
    inputs: Inputs,
    differentiable: tuple[str, ...],
    dtype: torch.dtype | None = None,
    make_dy: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The output as 'out' and the gradient of each differentiable input as 'd<name>' ('d<name>0' … for a tuple).

    dtype: floating-point inputs are cast to it first; None keeps them, strides included. make_dy: the gradient of the output,
    from the output; None leaves gradients out. Raises AssertionError where a differentiable input got no gradient.
    """

    def detached(value):
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(dtype) if dtype is not None and value.is_floating_point() else value.detach()

    leaves: dict[str, list[Tensor]] = {}
    arguments: Inputs = {}
    for name, value in inputs.items():
        elements = [detached(element) for element in as_list(value)]
        if name in differentiable and all(isinstance(element, Tensor) for element in elements):
            leaves[name] = [element.requires_grad_() for element in elements]
        arguments[name] = tuple(elements) if isinstance(value, tuple | list) else elements[0]
    out = function(**arguments)
    results = {"out": out.detach()}
    if make_dy is not None and leaves:
        out.backward(make_dy(out.detach()).to(out.dtype))
        for name, tensors in leaves.items():
            for i, tensor in enumerate(tensors):
                key = f"d{name}{i}" if len(tensors) > 1 else f"d{name}"
                if tensor.grad is None:
                    raise AssertionError(f"{key} is None")
                results[key] = tensor.grad
    return results


def random_gradient(out: Tensor) -> Tensor:
    """A fixed normal gradient of an output, in its dtype."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)


def random_gradient_rounded_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`random_gradient`, rounded to dtype before it is widened, so that runs in all dtypes get the same numbers."""
    return lambda out: random_gradient(out).to(dtype).to(out.dtype)


def check_operation(
    spec: OperationSpec,
    inputs: Inputs,
    dtype: torch.dtype,
    make_dy: Callable[[Tensor], Tensor] | None = None,
    *,
    summed_rows: int = 0,
) -> list[Accuracy]:
    """The accuracy of the output and of every gradient of one operation on one set of inputs of that dtype.

    make_dy: as in `forward_backward`; None for a random gradient. summed_rows: as in `compare_with_float64`.
    """
    make_dy = random_gradient_rounded_to(dtype) if make_dy is None else make_dy
    differentiable = tuple(name for name in spec.differentiable if name in inputs)
    reference_inputs = spec.reference_inputs(inputs)
    results = forward_backward(spec.function, inputs, differentiable, None, make_dy)
    with matrix_unit.hardware_products(dtype, results["out"].device):
        same_dtype = forward_backward(spec.reference, reference_inputs, differentiable, dtype, make_dy)
    exact = forward_backward(spec.reference, reference_inputs, differentiable, torch.float64, make_dy)
    float32_scale = _summand_scale(spec, reference_inputs, exact["out"], make_dy)
    if results["out"].dtype != same_dtype["out"].dtype:
        raise AssertionError(f"{spec.name}: expected an output of {same_dtype['out'].dtype}, got {results['out'].dtype}")
    return [
        compare_with_float64(
            name,
            result,
            same_dtype[name],
            exact[name],
            OUT_FACTOR if name == "out" else spec.grad_factor,
            summed_rows=summed_rows,
            float32_scale=float32_scale.get(name, 0.0),
        )
        for name, result in results.items()
    ]


def _summand_scale(
    spec: OperationSpec, reference_inputs: Inputs, exact: Tensor, make_dy: Callable[[Tensor], Tensor]
) -> Mapping[str, float]:
    if spec.summand_scale is None or exact.numel() == 0:
        return {}
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in reference_inputs.items()
    }
    return spec.summand_scale(wide, make_dy(exact).double())
