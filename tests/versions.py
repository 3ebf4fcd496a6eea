"""The suite on the oldest or the newest versions that pyproject.toml allows: `python tests/versions.py oldest --folder DIR`.

Makes a virtual environment in the folder, with the oldest or the newest release of every declared dependency, runs pytest in
it, and adds a line to a table: what was installed, what ran, and when. A second run uses the environment again. It needs the
network and, with PyPI's CUDA builds of torch, 6 GB for each environment; UV_TORCH_BACKEND=cpu takes the CPU builds instead.

    python tests/versions.py oldest --python python3.12 --folder /somewhere tests/model
    python tests/versions.py newest --python python3.13 --folder /somewhere --record tests/versions.tsv tests/kernels -n 2
"""

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "test")
# Packages that others bring along and whose newest releases do not work with the oldest of those, which do not say so.
PARTNERS_OF_THE_OLDEST = (
    "huggingface-hub<1.6",  # later ones find transformers 5.4's own `is_encoder_decoder` of the wrong type
    "pyarrow<22",  # later ones need NumPy 2
    "numpy<2.4",  # the interpreter of Triton 3.6
)
SHOWN = "torch triton transformers numpy safetensors typer rich accelerate datasets peft sentence-transformers".split()
COLUMNS = ("date", "set", "python", *SHOWN, "tests", "passed", "failed", "errors", "skipped", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", choices=("oldest", "newest"), help="which end of every declared range")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment (default: this one)")
    parser.add_argument("--folder", type=Path, required=True, help="where the environments and their cache are")
    parser.add_argument("--record", type=Path, help="the table to add a line to (default: versions.tsv in the folder)")
    options, pytest_arguments = parser.parse_known_args()
    folder = options.folder.resolve()
    python = environment(options.set, options.python, folder)
    found = installed(python)
    print(f"{options.set}: Python {found['python']}, " + ", ".join(f"{name} {found[name]}" for name in SHOWN))
    status, counts = run_suite(python, pytest_arguments or ["tests"], folder / "junit.xml")
    record = options.record or folder / "versions.tsv"
    line = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "set": options.set, **found, **counts}
    line["tests"] = " ".join(pytest_arguments) or "tests"
    add_line(record, [str(line[column]) for column in COLUMNS])
    print(f"added to {record}")
    return status


def environment(which: str, python: str, folder: Path) -> Path:
    """The interpreter of the environment, which is made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    version = output([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    home = folder / f"{which}-{version}"
    inside = home / "bin" / "python"
    made = home / ".made"  # what it was made from, written last
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + "\n".join(PARTNERS_OF_THE_OLDEST)
    if made.is_file() and made.read_text(encoding="utf-8") == declared:
        return inside
    tools = folder / "tools"
    if not (tools / "bin" / "uv").is_file():
        subprocess.run([python, "-m", "venv", str(tools)], check=True)
        subprocess.run([str(tools / "bin" / "python"), "-m", "pip", "install", "-q", "uv"], check=True)
    uv = [str(tools / "bin" / "uv"), "--cache-dir", str(folder / "cache")]
    subprocess.run([*uv, "venv", "-q", "--clear", "--python", python, str(home)], check=True)
    command = [*uv, "pip", "install", "-q", "--python", str(inside), "-r", str(ROOT / "pyproject.toml"), "setuptools"]
    command += [argument for extra in EXTRAS for argument in ("--extra", extra)]
    if which == "oldest":
        partners = folder / "partners-of-the-oldest.txt"
        partners.write_text("\n".join(PARTNERS_OF_THE_OLDEST) + "\n", encoding="utf-8")
        command += ["--resolution", "lowest-direct", "--constraint", str(partners)]
        # Old sources may not build any more; seqeval has nothing else.
        command += ["--only-binary", ":all:", "--no-binary", "seqeval"]
    subprocess.run(command, check=True)
    made.write_text(declared, encoding="utf-8")
    return inside


def installed(python: Path) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found.get(n, 'absent') for n in sys.argv[1:]}}))"
    )
    return json.loads(output([str(python), "-c", code, *SHOWN]))


def run_suite(python: Path, arguments: list[str], report: Path) -> tuple[int, dict[str, int]]:
    report.unlink(missing_ok=True)
    variables = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode
    if not report.is_file():
        raise SystemExit(f"pytest ended with status {status} and left no report: nothing is recorded")
    suites = ElementTree.parse(report).getroot().findall("testsuite")
    total = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    passed = total["tests"] - total["failures"] - total["errors"] - total["skipped"]
    seconds = round(sum(float(suite.get("time", 0)) for suite in suites))
    counts = {"passed": passed, "failed": total["failures"], "errors": total["errors"], "skipped": total["skipped"]}
    return status, counts | {"seconds": seconds}


def add_line(record: Path, values: list[str]) -> None:
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else ["\t".join(COLUMNS)]
    if lines[0] != "\t".join(COLUMNS):
        raise SystemExit(f"{record}: expected a table with the columns {', '.join(COLUMNS)}, got {lines[0]!r}")
    whole = record.with_name(record.name + ".part")
    whole.write_text("\n".join([*lines, "\t".join(values)]) + "\n", encoding="utf-8")
    whole.replace(record)


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
