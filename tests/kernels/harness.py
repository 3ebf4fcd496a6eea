"""The rule of fastbert.kernels.specs.accuracy as an assertion."""

import torch

from fastbert.kernels.specs.accuracy import check_operation, measure, noise, noise_rounded_to, run, tensors_of
from fastbert.kernels.specs.spec import Inputs, OperationSpec

__all__ = ["DTYPES", "GPU", "assert_error_within", "compare", "noise", "noise_rounded_to", "run", "tensors_of"]

GPU = torch.cuda.is_available()
# The interpreter's dot multiplies the bit patterns of bfloat16: right numbers for it exist on a GPU only.
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if GPU else [torch.float32, torch.float16]


def assert_error_within(name: str, ours, same_dtype, exact, factor: float) -> float:
    """Fails where ours errs more than the rule allows; returns the ratio of the two errors."""
    accuracy = measure(name, ours, same_dtype, exact, factor)
    assert accuracy.passed, str(accuracy)
    return accuracy.ratio


def compare(spec: OperationSpec, inputs: Inputs, dtype: torch.dtype, make_dy=None, *, summed_rows: int = 0) -> None:
    """Asserts the rule for the output and every gradient of one operation on one set of inputs."""
    accuracies = check_operation(spec, inputs, dtype, make_dy, summed_rows=summed_rows)
    failed = [str(accuracy) for accuracy in accuracies if not accuracy.passed]
    assert not failed, f"{spec.name} in {dtype}:\n" + "\n".join(failed)
