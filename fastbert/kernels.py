"""The package `fastbert.kernels`: the public operations, as `functional` and `fp8`, and the choice of their backend.

The source is the top-level folder `kernels/` of a checkout, and `fastbert/_kernels/` of an installed wheel. Neither has an
`__init__.py`: a folder `kernels/` with one would hide Hugging Face's own package of that name from transformers. This module
finds the folder and becomes the package of its files. Importing it imports torch, never Triton, and creates no CUDA context.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
_folders = [folder for folder in (_here / "_kernels", _here.parent / "kernels") if (folder / "functional.py").is_file()]
if not _folders:
    raise ImportError(
        f"fastbert's kernels are missing: expected functional.py in {_here / '_kernels'} (an installed package) or in "
        f"{_here.parent / 'kernels'} (a checkout)"
    )
__path__ = [str(_folders[0])]

from fastbert.kernels import fp8, functional  # type: ignore[attr-defined]  # noqa: E402
from fastbert.kernels.backend import backend_reason, resolve_backend, use_backend  # noqa: E402

__all__ = ["backend_reason", "fp8", "functional", "resolve_backend", "use_backend"]
