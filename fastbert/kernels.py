"""The public face of the operations: `fastbert.kernels`.

The source lives in the top-level folder `kernels/` of a checkout and in `fastbert/_kernels/` of an installed wheel.
Neither holds an `__init__.py`: a folder `kernels/` with one would hide Hugging Face's own package of that name from
transformers. This module finds whichever folder is there, becomes the package whose submodules it holds, and exports
the public functions as `functional` and `fp8`, in the manner of torch.nn. Importing it imports torch, never Triton and never a
CUDA context.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
_homes = [folder for folder in (_here / "_kernels", _here.parent / "kernels") if (folder / "functional.py").is_file()]
if not _homes:
    raise ImportError(
        f"fastbert's kernels are missing: expected functional.py in {_here / '_kernels'} (an installed package) or in "
        f"{_here.parent / 'kernels'} (a checkout)"
    )
__path__ = [str(_homes[0])]

from fastbert.kernels import fp8, functional  # type: ignore[attr-defined]  # noqa: E402
from fastbert.kernels.backend import backend_reason, resolve_backend, use_backend  # noqa: E402

__all__ = ["backend_reason", "fp8", "functional", "resolve_backend", "use_backend"]
