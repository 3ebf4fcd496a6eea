"""The list of commands: its version and its help, which must be quick."""

import subprocess
import sys
from importlib.metadata import version

from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app


def test_version():
    done = CliRunner().invoke(app, ["--version"])
    libraries = "".join(f"{name} {version(name)}\n" for name in ("torch", "triton", "transformers"))
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"fastbert {fastbert.__version__}\n{libraries}", "")


def test_help_and_mistakes_come_without_loading_torch():
    """They are what is asked for most, and quick."""
    code = (
        "import sys; from fastbert.cli.app import app; app(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    for words in (["--help"], ["pretrain", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.rstrip().endswith("False")
