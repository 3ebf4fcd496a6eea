"""Every kernel against float64, one JSON line per operation and dtype.

`python -m fastbert.verification.kernels DEVICE SAMPLES`

`fastbert verify` runs this in a process of its own. On a CPU it needs TRITON_INTERPRET=1 from the start.
"""

import json
import sys
from dataclasses import asdict

import torch

from fastbert.kernels.backend import use_backend
from fastbert.kernels.specs.accuracy import check_operation
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.verification.compare import worst_of


def main(device_type: str, num_samples: int) -> None:
    device = torch.device(device_type)
    # The interpreter multiplies the bit patterns of bfloat16, so only a GPU can be asked about it.
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if device_type == "cuda" else (torch.float32, torch.float16)
    with use_backend("triton"):
        for spec in ALL_SPECS:
            if spec.unsupported_reason(device) is not None:
                continue  # no model runs it on this machine either
            for dtype in dtypes:
                samples = spec.samples[: num_samples or None]
                found = [a for sample in samples for a in check_operation(spec, sample.make(dtype, device), dtype)]
                where = f"{spec.name} {str(dtype).removeprefix('torch.')}"
                print(json.dumps({"where": where, "worst": asdict(worst_of(found)), "count": len(found)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
