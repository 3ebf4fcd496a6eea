"""The rule of fastbert.kernels.specs.accuracy as an assertion."""

import torch

from fastbert.kernels.specs.accuracy import (
    as_list,
    check_operation,
    compare_with_float64,
    forward_backward,
    random_gradient,
    random_gradient_rounded_to,
)
from fastbert.kernels.specs.spec import Inputs, OperationSpec

__all__ = [
    "DTYPES",
    "GPU",
    "as_list",
    "assert_error_within",
    "compare",
    "forward_backward",
    "random_gradient",
    "random_gradient_rounded_to",
]

GPU = torch.cuda.is_available()
# The interpreter's dot multiplies the bit patterns of bfloat16: right numbers for it exist on a GPU only.
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if GPU else [torch.float32, torch.float16]


def assert_error_within(name: str, result, same_dtype, exact, factor: float) -> float:
    """Fails where the result errs more than the rule allows; returns the ratio of its error to PyTorch's."""
    accuracy = compare_with_float64(name, result, same_dtype, exact, factor)
    assert accuracy.passed, str(accuracy)
    return accuracy.ratio


def compare(spec: OperationSpec, inputs: Inputs, dtype: torch.dtype, make_dy=None, *, summed_rows: int = 0) -> None:
    """Asserts the rule for the output and every gradient of one operation on one set of inputs."""
    accuracies = check_operation(spec, inputs, dtype, make_dy, summed_rows=summed_rows)
    failed = [str(accuracy) for accuracy in accuracies if not accuracy.passed]
    assert not failed, f"{spec.name} in {dtype}:\n" + "\n".join(failed)
