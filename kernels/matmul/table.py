"""The measured table: which side of a matrix product was faster, on which machine. Imports no Triton to read one.

A table is one JSON file for one machine: the device by name, its architecture, and the minor versions of torch and Triton,
since another compiler makes another kernel. A user's own table (`fastbert tune` writes it) comes before the one that
ships; a product that neither has follows the rules of choose.py. Files are read once, when the first product on a GPU is
chosen.
"""

import importlib.util
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .config import GemmConfig
from .keys import GEMM_PRODUCTS, OPERATIONS, Entry, Key, Measured, Timed

__all__ = [
    "Entry",
    "Key",
    "Machine",
    "Measured",
    "TableError",
    "Timed",
    "default_file",
    "forget_measured",
    "load",
    "measured_on",
    "read",
    "to_json",
    "user_file",
]

FORMAT = 1
ENVIRONMENT = "FASTBERT_TUNED"  # a file to read instead of the user's own, or OFF
OFF = "off"
SHIPPED = Path(__file__).parent / "tuned"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ENTRY_FIELDS = ("operation", "dtype", "precision", "N", "K", "rows", "winner", "runner_up")
_TIMED_FIELDS = ("side", "config", "microseconds")


class TableError(ValueError):
    """A table cannot be used; the message names the file, the field, what was expected and what is there."""


@dataclass(frozen=True)
class Machine:
    """What a table is valid for; versions are minor ones, such as '2.13'."""

    device: str
    architecture: str
    torch_version: str
    triton_version: str

    @classmethod
    def of(cls, device: torch.device, architecture: str) -> "Machine":
        """This machine, with one of its devices."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        triton_version = "none"
        if importlib.util.find_spec("triton") is not None:
            import triton

            triton_version = triton.__version__
        return cls(name, architecture, _minor(torch.__version__), _minor(triton_version))

    @property
    def file_name(self) -> str:
        words = (self.device, self.architecture, f"torch{self.torch_version}", f"triton{self.triton_version}")
        return "-".join(re.sub(r"[^a-z0-9._]+", "-", word.lower()).strip("-") for word in words) + ".json"


def user_file(machine: Machine) -> Path:
    """The user's own table of this machine, whether it exists or not."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "fastbert" / f"tuned-{machine.file_name}"


def default_file(machine: Machine) -> Path:
    """The file that FASTBERT_TUNED names, or else the user's own."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named) if named and named != OFF else user_file(machine)


def read(file: Path, machine: Machine | None = None) -> tuple[Machine, dict[Key, Entry]]:
    """The machine and the entries of a table.

    machine: the one that it must be for; any where None.
    Raises TableError for a file that is no such table, OSError where the file cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TableError(f"{file}: expected JSON, got {error}") from error
    return _parse(content, _Field(file), machine)


def to_json(machine: Machine, entries: Mapping[Key, Entry]) -> dict[str, Any]:
    """The content of a file that `read` takes, entries in order."""
    rows = []
    for key, entry in sorted(entries.items(), key=lambda item: (*map(str, item[0][:3]), *item[0][3:])):
        operation, dtype, precision, N, K, num_rows = key
        product = dict(operation=operation, dtype=str(dtype).removeprefix("torch."), precision=precision, N=N, K=K)
        rows.append(product | {"rows": num_rows} | asdict(entry))
    about = {"format": FORMAT, "device": machine.device, "architecture": machine.architecture}
    return about | {"versions": {"torch": machine.torch_version, "triton": machine.triton_version}, "entries": rows}


def load(machine: Machine) -> Measured:
    """What was measured on this machine, the user's entries before the shipped ones; nothing where FASTBERT_TUNED is 'off'.

    A table that is there and cannot be used is left out with a warning; its reason goes with every choice by the rules.
    Raises TableError or OSError where the environment variable FASTBERT_TUNED names the file.
    """
    named = os.environ.get(ENVIRONMENT)
    if named == OFF:
        return Measured(machine.device, {})
    shipped, table_error = _read_if_there(SHIPPED / machine.file_name, machine)
    if named:
        own = _read_named(Path(named), machine)
    else:
        own, own_error = _read_if_there(user_file(machine), machine)
        table_error = own_error or table_error
    return Measured(machine.device, shipped | own, table_error)


@cache
def measured_on(index: int, arch: str) -> Measured | None:
    """What the tables say about one GPU, read once; None on a machine without one. Raises as `load` does."""
    if not torch.cuda.is_available():
        return None
    return load(Machine.of(torch.device("cuda", index), arch))


def forget_measured() -> None:
    """Reads the tables again at the next product, since a file has changed."""
    measured_on.cache_clear()


def _read_named(file: Path, machine: Machine) -> dict[Key, Entry]:
    try:
        _, entries = read(file, machine)
        _check_configs(file, entries)
    except TableError as error:
        raise TableError(f"{error} (the file is named by the environment variable {ENVIRONMENT})") from error
    return entries


def _read_if_there(file: Path, machine: Machine) -> tuple[dict[Key, Entry], str]:
    """(entries, why there are none although the file exists)."""
    try:
        _, entries = read(file, machine)
        _check_configs(file, entries)
    except FileNotFoundError:
        return {}, ""
    except (TableError, OSError) as error:
        table_error = f"the measured table cannot be used: {error}"
        warnings.warn(f"fastbert: {table_error}; matrix products go by the rules instead", RuntimeWarning, stacklevel=6)
        return {}, table_error
    return entries, ""


def _check_configs(file: Path, entries: Mapping[Key, Entry]) -> None:
    """Raises TableError where an entry names a tile that this version does not have."""
    for key, entry in entries.items():
        if entry.winner.config is None:
            continue
        try:
            GemmConfig.named(GEMM_PRODUCTS[key[0]], entry.winner.config)
        except ValueError as error:
            raise TableError(f"{file}: {key[0]} N={key[3]} K={key[4]} rows={key[5]}: winner.config: {error}") from error


class _Field:
    """A field of a file, for messages."""

    def __init__(self, file: Path, path: str = "") -> None:
        self.file, self.path = file, path

    def __getitem__(self, name: str | int) -> "_Field":
        step = f"[{name}]" if isinstance(name, int) else f".{name}" if self.path else name
        return _Field(self.file, self.path + step)

    def error(self, expected: str, got: Any) -> TableError:
        return TableError(f"{self.file}: {self.path or 'the file'}: expected {expected}, got {got!r}")


def _fields(content: Any, field: _Field, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise field.error("an object", type(content).__name__)
    if set(content) != set(names):
        raise field.error(f"the fields {', '.join(names)}", ", ".join(map(str, content)))
    return content


def _text(value: Any, field: _Field, among: tuple[str, ...] = ()) -> str:
    if not isinstance(value, str) or not value or (among and value not in among):
        raise field.error("one of " + ", ".join(among) if among else "a text that is not empty", value)
    return value


def _count(value: Any, field: _Field) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise field.error("a whole number of at least 1", value)
    return value


def _time(value: Any, field: _Field) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise field.error("a number above 0", value)
    return float(value)


def _timed(content: Any, field: _Field) -> Timed:
    content = _fields(content, field, _TIMED_FIELDS)
    side = _text(content["side"], field["side"], ("triton", "library"))
    config = content["config"]
    if side == "library":
        if config is not None:
            raise field["config"].error("null, since the library chooses its own", config)
        return Timed("library", None, _time(content["microseconds"], field["microseconds"]))
    return Timed("triton", _text(config, field["config"]), _time(content["microseconds"], field["microseconds"]))


def _parse(content: Any, field: _Field, machine: Machine | None) -> tuple[Machine, dict[Key, Entry]]:
    content = _fields(content, field, ("format", "device", "architecture", "versions", "entries"))
    if content["format"] != FORMAT or isinstance(content["format"], bool):
        raise field["format"].error(str(FORMAT), content["format"])
    versions = _fields(content["versions"], field["versions"], ("torch", "triton"))
    found = Machine(
        _text(content["device"], field["device"]),
        _text(content["architecture"], field["architecture"]),
        _text(versions["torch"], field["versions"]["torch"]),
        _text(versions["triton"], field["versions"]["triton"]),
    )
    if machine is not None:
        fields = (field["device"], field["architecture"], field["versions"]["torch"], field["versions"]["triton"])
        for where, here, there in zip(fields, astuple(machine), astuple(found)):
            if here != there:
                raise where.error(f"{here!r}, which is what this machine has", there)
    if not isinstance(content["entries"], list):
        raise field["entries"].error("a list", type(content["entries"]).__name__)
    entries: dict[Key, Entry] = {}
    for number, entry in enumerate(content["entries"]):
        key, parsed = _parse_entry(entry, field["entries"][number])
        if key in entries:
            raise field["entries"][number].error("each product and number of rows once", entry["operation"])
        entries[key] = parsed
    return found, entries


def _parse_entry(content: Any, field: _Field) -> tuple[Key, Entry]:
    content = _fields(content, field, _ENTRY_FIELDS)
    operation = _text(content["operation"], field["operation"], tuple(OPERATIONS))
    dtype = DTYPES[_text(content["dtype"], field["dtype"], tuple(DTYPES))]
    precision = _text(content["precision"], field["precision"], ("ieee", "tf32"))
    N, K, rows = (_count(content[name], field[name]) for name in ("N", "K", "rows"))
    if rows & (rows - 1):
        raise field["rows"].error("a power of two", rows)
    winner, runner_up = _timed(content["winner"], field["winner"]), None
    if content["runner_up"] is not None:
        where = field["runner_up"]
        runner_up = _timed(content["runner_up"], where)
        if runner_up.side == winner.side:
            raise where["side"].error("the side that did not win", runner_up.side)
        if runner_up.microseconds < winner.microseconds:
            raise where["microseconds"].error(f"no less than the winner's {winner.microseconds:g}", runner_up.microseconds)
    return (operation, dtype, precision, N, K, rows), Entry(winner, runner_up)


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
