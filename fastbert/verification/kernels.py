"""Every Triton kernel against float64, in a process that reads TRITON_INTERPRET from its start.

`python -m fastbert.verification.kernels DEVICE SAMPLES` prints one JSON line per operation and dtype. Beside what it found here
stands what the record of proofs says of the same kernels (proofs.py).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch

from fastbert.kernels.specs.accuracy import Accuracy, check_operation

from .proofs import digest_of, proved_by, read_proofs
from .rows import Row, worst_of

KINDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}  # as the record of proofs names them


def verify_kernels(device: torch.device, samples_per_operation: int | None) -> Iterator[Row]:
    """Each Triton kernel on this machine: on its GPU, or under Triton's interpreter on the CPU.

    samples_per_operation: None for all. Raises RuntimeError with the end of the process's stderr where it fails.
    """
    environment = dict(os.environ)
    if device.type == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "fastbert.verification.kernels", device.type, str(samples_per_operation or 0)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            found = json.loads(line)
            yield Row(
                "kernels",
                found["where"],
                Accuracy(**found["worst"]),
                found["count"],
                tuple(found["proved"]),
                tuple(found["earlier"]),
            )
        errors = process.stderr.read().strip()
    if process.returncode:
        raise RuntimeError(f"the kernel check ended with status {process.returncode}: {errors[-2000:]}")


def main(device_type: str, num_samples: int) -> None:
    """Checks the first `num_samples` samples of every operation, 0 for all."""
    import triton

    from fastbert.kernels.backend import use_backend
    from fastbert.kernels.specs.registry import ALL_SPECS  # decorates kernels, so only in this process

    device = torch.device(device_type)
    # The interpreter multiplies the bit patterns of bfloat16, so only a GPU is asked about it.
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if device_type == "cuda" else (torch.float32, torch.float16)
    here = "this GPU" if device_type == "cuda" else "interpreter"
    recorded = read_proofs()
    with use_backend("triton"):
        for spec in ALL_SPECS:
            if spec.unsupported_reason(device) is not None:
                continue  # no model runs it on this machine either
            sources = digest_of(spec)
            for dtype in dtypes:
                samples = spec.samples[: num_samples or None]
                found = [a for sample in samples for a in check_operation(spec, sample.make(dtype, device), dtype)]
                worst = worst_of(found)
                these, earlier = proved_by(recorded, spec.name, KINDS[dtype], sources, triton.__version__)
                row = {
                    "where": f"{spec.name} {str(dtype).removeprefix('torch.')}",
                    "worst": asdict(worst),
                    "count": len(found),
                    "proved": (here, *these) if worst.passed else (),
                    "earlier": earlier if worst.passed else (),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
