"""The folder of a fine-tuning: names of its files, whether a run may write to it, and its report."""

import json
import shutil
from pathlib import Path
from typing import Any

from fastbert.model.variants.frozen import HEAD, SHAPE
from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import first_difference, other_options_error
from fastbert.utils.files import strict_json, write_whole

from .folder import IDENTITY as IDENTITY
from .folder import REPORT as REPORT
from .folder import is_started

CURVES, CONFUSION = "curves.png", "confusion.png"
BEST = "best"  # while a run trains: the folder of its best epoch
CACHE = ".features"  # of a frozen encoder, until the end of all runs
RUNS, MODEL = "runs", "model"  # of several runs: their folders, and in each the model
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    HEAD,
    SHAPE,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def check_folder(out: Path, identity: dict[str, Any], resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The report, where the folder holds this very training and it is finished; else None.

    Raises InputError where the folder may not be written to.
    """
    if not is_started(out, resume, overwrite):
        return None
    try:
        before = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"expected the options of a run in {out / IDENTITY}, got {error}") from error
    if changed := first_difference(before, identity):
        raise other_options_error(out, *changed)
    return read_report(out, identity)


def clear(out: Path) -> None:
    """Removes what an earlier training left, and nothing else. The report, which marks a run as finished, goes first."""
    (out / REPORT).unlink(missing_ok=True)
    folders = [out / RUNS, out / BEST, out / f".{BEST}", *out.glob("*checkpoint-*"), *out.glob(f"{checkpoints.STAGING}-*")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for name in (CURVES, CONFUSION, CACHE, *MODEL_FILES, IDENTITY):
        (out / name).unlink(missing_ok=True)


def read_report(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a run that was finished in this folder with the same identity, or None."""
    file = folder / REPORT
    if not file.is_file():
        return None
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("identity") == identity else None


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Writes the report as strict JSON, where what is not finite is null; returns what was written."""
    text = strict_json(report)
    write_whole(folder / REPORT, text)
    return json.loads(text)
