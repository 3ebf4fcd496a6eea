"""What `fastbert export` refuses without loading a model, or a library."""

import importlib.util
from pathlib import Path

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import refuse_existing_file
from fastbert.utils.installation import install_command

ONNX_PACKAGES = ("onnx", "onnxscript")


def check_export(to: str, out: Path, overwrite: bool) -> None:
    """Raises InputError for a file that exists or has another format's name, a folder that does not, a missing exporter."""
    refuse_existing_file(out, overwrite)
    if to == "torch-export" and out.suffix != ".pt2":
        raise InputError(f"expected a name that ends in .pt2, as torch.export.load wants it, got {out}")
    if to == "onnx" and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise InputError(f"expected {' and '.join(missing)} for ONNX, got none installed: {install_command('export')}")
