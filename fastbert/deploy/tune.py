"""`fastbert tune`: measures every matrix product of a layer on this GPU, keeps the table, and prints it.

The table is written after every product and number of rows, so an interrupted run continues where it stopped.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastbert.deploy.measure import Result, measure_product
from fastbert.kernels.backend import backend_reason
from fastbert.kernels.device import architecture, dot_precision
from fastbert.kernels.matmul.table import (
    Entry,
    Key,
    Machine,
    TableError,
    default_file,
    forget_measured,
    measured_on,
    read,
    to_json,
)
from fastbert.utils.errors import InputError
from fastbert.utils.files import strict_json, write_whole
from fastbert.utils.printing import number_of
from fastbert.utils.sizes import SIZES
from fastbert.utils.timing import Clock, Timer

from .tune_options import DEFAULT_SIZE, check_size
from .tune_options import ROWS as ROWS
from .tune_options import parse_rows as parse_rows

if TYPE_CHECKING:
    from fastbert.kernels.specs.products import Product

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32, "tf32": torch.float32}


class TableFile:
    """A table being measured. Raises TableError where the file holds something else, or the table of another machine."""

    def __init__(self, file: Path, machine: Machine) -> None:
        self.file, self.machine = file, machine
        self.entries: dict[Key, Entry] = {}
        if file.exists():
            try:
                _, self.entries = read(file, machine)
            except TableError as error:
                raise TableError(f"{error}; nothing was measured: name another file, or take this one away") from error

    def put(self, key: Key, entry: Entry) -> None:
        """Adds or replaces an entry, and rewrites the file."""
        self.entries[key] = entry
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, strict_json(to_json(self.machine, self.entries)))


def tune(
    products: Iterable["Product"],
    rows: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    table: TableFile,
    clock: Clock,
    *,
    rounds: int,
    again: bool = False,
) -> Iterator[Result]:
    """Measures what the table does not have yet, or everything again, and yields each result once it is written."""
    precision = dot_precision(dtype, architecture(device))
    for product in products:
        for count in rows:
            key = (product.operation, dtype, precision, product.N, product.K, count)
            if key in table.entries and not again:
                continue
            result = measure_product(product, count, dtype, device, clock, rounds)
            if result.entry is not None:
                table.put(key, result.entry)
                forget_measured()
            yield result


def run_tune(
    checkpoint: str | None,
    config: str | None,
    *,
    dtype: str,
    rows: Sequence[int],
    training: bool,
    file: Path | None,
    rounds: int,
    again: bool,
    console: Any,
) -> bool:
    """The command: measures, prints and keeps. Returns whether every product has an entry and no contender was left out.

    Raises InputError where there is no GPU that the kernels run on or for a wrong argument, TableError for a file that holds
    something else or the table of another machine.
    """
    hidden_size, intermediate_size, activation = _size(checkpoint, config)
    device = supported_device(DTYPES[dtype])
    from fastbert.kernels.specs.products import of_layer

    machine = Machine.of(device, architecture(device))
    table = TableFile(default_file(machine) if file is None else file, machine)
    products = of_layer(hidden_size, intermediate_size, activation, training=training)
    console.print(f"{machine.device}, torch {machine.torch_version}, triton {machine.triton_version}; {table.file}")
    everything_ran, found = True, {}
    with _tf32(dtype == "tf32"):
        clock = Timer(device, kernel=True)
        for result in tune(products, rows, DTYPES[dtype], device, table, clock, rounds=rounds, again=again):
            title = f"{result.product.operation} {result.product.N}x{result.product.K}, {number_of(result.rows, 'row')}"
            for name, why in result.excluded:
                console.print(f"left out of {title}: {name}: {why}", style="red", highlight=False, markup=False)
            everything_ran &= result.entry is not None and not result.excluded
            found[title] = result.entry
            console.print(f"{title}: {_summary(result.entry)}", highlight=False, markup=False)
        precision = dot_precision(DTYPES[dtype], machine.architecture)
    kept = {key: entry for key, entry in table.entries.items() if key[1] == DTYPES[dtype] and key[2] == precision}
    print_entries(kept, f"{machine.device}, {dtype}", console)
    console.print(f"{len(found)} measured, {len(table.entries)} in {table.file}", highlight=False)
    return everything_ran


def print_table(file: Path | None, console: Any) -> None:
    """Prints a table, or without a file what this machine uses. Raises TableError for a file that is no table."""
    if file is None:
        device = supported_device(torch.float32)
        found = measured_on(device.index, architecture(device))
        assert found is not None  # there is a GPU
        print_entries(dict(found.entries), found.device, console)
        if found.table_error:
            console.print(found.table_error, style="red", highlight=False, markup=False)
        return
    machine, entries = read(file)
    print_entries(
        entries,
        f"{machine.device}, {machine.architecture}, torch {machine.torch_version}, triton {machine.triton_version}",
        console,
    )


def print_entries(entries: dict[Key, Entry], title: str, console: Any) -> None:
    """One line for each product and number of rows."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("product", "N x K", "dtype", "rows", "faster", "us", "other side", "us", "ratio"):
        number = column in ("rows", "us", "ratio")
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for (operation, dtype, precision, N, K, rows), entry in sorted(
        entries.items(), key=lambda item: (*map(str, item[0][:3]), *item[0][3:])
    ):
        numbers = "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")
        winner, other = entry.winner, entry.runner_up
        cells = [winner.config or "library", f"{winner.microseconds:.1f}"]
        if other is None:
            cells += ["none", "", ""]
        else:
            ratio = other.microseconds / winner.microseconds
            cells += [other.config or "library", f"{other.microseconds:.1f}", f"{ratio:.2f}x"]
        table.add_row(operation, f"{N} x {K}", numbers, str(rows), *cells)
    console.print(table)


def supported_device(dtype: torch.dtype) -> torch.device:
    """The GPU to measure on. Raises InputError where there is none that the kernels run on."""
    if not torch.cuda.is_available():
        raise InputError("expected a GPU to measure on, and this machine has none that PyTorch can use; nothing was written")
    device = torch.device("cuda", torch.cuda.current_device())
    side, why = backend_reason(device, dtype)
    if side != "triton":
        raise InputError(f"expected a GPU that the kernels run on, but {why}; nothing was written")
    return device


def _size(checkpoint: str | None, config: str | None) -> tuple[int, int, str]:
    """Hidden size, intermediate size and activation."""
    check_size(checkpoint, config)
    if checkpoint is None:
        name = config or DEFAULT_SIZE
        return SIZES[name]["hidden_size"], SIZES[name]["intermediate_size"], "gelu_erf"
    from transformers.activations import ACT2FN

    from fastbert.model.fallback.activations import fused_activation
    from fastbert.utils.checkpoints import open_checkpoint

    found = open_checkpoint(checkpoint).config
    activation = fused_activation(ACT2FN[found.hidden_act] if isinstance(found.hidden_act, str) else found.hidden_act)
    if activation is None:
        raise InputError(f"the kernels have no activation {found.hidden_act!r}, which {checkpoint} uses")
    return found.hidden_size, found.intermediate_size, activation


def _summary(entry: Entry | None) -> str:
    if entry is None:
        return "no contender gave a right result"
    words = f"{entry.winner.config or 'library'} {entry.winner.microseconds:.1f} us"
    other = entry.runner_up
    return words if other is None else f"{words}, {other.config or 'library'} {other.microseconds:.1f} us"


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """float32 products as `--dtype` says, whatever the setting of the process."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
