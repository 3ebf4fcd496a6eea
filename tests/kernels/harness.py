"""Three runs on the same rounded inputs: ours, PyTorch in the same dtype, PyTorch in float64.

Ours may err at most `factor` times what PyTorch errs in that dtype, against float64, plus half a unit in the last place of
the largest value: the rounding of the store, which the best implementation cannot escape and which PyTorch sometimes does
by luck.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastbert.kernels.spec import Inputs, OperationSpec

GPU = torch.cuda.is_available()
# The interpreter's dot multiplies the bit patterns of bfloat16: right numbers for it exist on a GPU only.
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if GPU else [torch.float32, torch.float16]
OUT_FACTOR = 2.0


def tensors_of(value) -> list[Tensor]:
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
    output, from the output.
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
                assert tensor.grad is not None, f"{key} is None"
                results[key] = tensor.grad
    return results


def noise(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)


def noise_rounded_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The same gradient for all three runs: rounded to the kernel's dtype before anyone widens it."""
    return lambda out: noise(out).to(dtype).to(out.dtype)


def assert_error_within(name: str, ours: Tensor, same_dtype: Tensor, exact: Tensor, factor: float) -> float:
    """Fails where ours errs more than the rule allows; returns the ratio of the two errors."""
    assert ours.shape == exact.shape, f"{name}: expected shape {tuple(exact.shape)}, got {tuple(ours.shape)}"
    if exact.numel() == 0:
        return 0.0
    ours_64, torch_64, exact = ours.double().cpu(), same_dtype.double().cpu(), exact.double().cpu()
    assert torch.isfinite(ours_64).all(), f"{name}: not finite where float64 is"
    error, allowed = (ours_64 - exact).abs().max().item(), (torch_64 - exact).abs().max().item()
    floor = 0.5 * torch.finfo(ours.dtype).eps * exact.abs().max().item()
    assert error <= factor * allowed + floor, (
        f"{name}: error {error:.3e}, PyTorch in {ours.dtype} errs {allowed:.3e} (allowed {factor} times that plus {floor:.1e})"
    )
    return error / allowed if allowed else 0.0


def compare(spec: OperationSpec, inputs: Inputs, dtype: torch.dtype, make_dy=None) -> None:
    """Asserts the rule for the output and every gradient of one operation on one set of inputs."""
    make_dy = noise_rounded_to(dtype) if make_dy is None else make_dy
    differentiable = tuple(name for name in spec.differentiable if name in inputs)
    reference_inputs = spec.reference_inputs(inputs)
    ours = run(spec.function, inputs, differentiable, None, make_dy)
    same_dtype = run(spec.reference, reference_inputs, differentiable, dtype, make_dy)
    exact = run(spec.reference, reference_inputs, differentiable, torch.float64, make_dy)
    assert ours["out"].dtype == same_dtype["out"].dtype, f"expected {same_dtype['out'].dtype}, got {ours['out'].dtype}"
    for name in ours:
        factor = OUT_FACTOR if name == "out" else spec.grad_factor
        assert_error_within(f"{spec.name}.{name}", ours[name], same_dtype[name], exact[name], factor)
