"""`fastbert tune` with a clock of set times: who wins, who is left out, what is kept."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from fastbert.cli.app import app
from fastbert.deploy import tune as tuning
from fastbert.deploy.measure import WARM_UP, measure_product
from fastbert.deploy.tune import TableFile, tune
from fastbert.kernels.device import architecture
from fastbert.kernels.matmul import products
from fastbert.kernels.matmul.config import candidates
from fastbert.kernels.matmul.keys import GEMM_PRODUCTS
from fastbert.kernels.matmul.table import Machine, TableError, read
from fastbert.kernels.specs.products import Product, of_layer

runner = CliRunner()
DTYPE = torch.float16
PRODUCT = Product("linear", 32, 16, with_bias=True)


@pytest.fixture
def tiles(device) -> list[str]:
    return [tile.name for tile in candidates("fwd", DTYPE, "ieee", architecture(device))]


class Clock:
    """Seconds by the name of the contender, 1 for the others, without running it; counts its calls."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, contender) -> float:
        self.calls += 1
        return self.seconds.get(contender.name, 1.0)


def measure(device, clock, product=PRODUCT, rows=32):
    return measure_product(product, rows, DTYPE, device, clock, rounds=3)


def spoil(monkeypatch, name, change):
    """Lets gemm_fwd give something else on the tile of that name."""
    original = products.gemm_fwd

    def spoiled(*args, config=None):
        y, u = original(*args, config=config)
        return (change(y), u) if config is not None and config.name == name else (y, u)

    monkeypatch.setattr(products, "gemm_fwd", spoiled)


def test_the_fastest_tile_wins_against_the_library(device, tiles):
    result = measure(device, Clock(**{tiles[0]: 60e-6, tiles[1]: 40e-6, "library": 50e-6}))
    assert not result.excluded
    assert (result.entry.winner.config, result.entry.winner.microseconds) == (tiles[1], 40.0)
    assert (result.entry.runner_up.side, result.entry.runner_up.microseconds) == ("library", 50.0)


def test_the_library_wins_against_the_fastest_tile_and_in_a_draw(device, tiles):
    for seconds in (30e-6, 40e-6):
        entry = measure(device, Clock(**{tiles[-1]: 40e-6, "library": seconds})).entry
        assert (entry.winner.side, entry.winner.config) == ("library", None)
        assert (entry.runner_up.config, entry.runner_up.microseconds) == (tiles[-1], 40.0)


def test_a_single_slow_turn_does_not_decide(device, tiles):
    """Medians count, of the turns after the first ones."""
    slow = iter([9.0] * WARM_UP + [9.0, 1e-6, 1e-6])

    class Hiccup(Clock):
        def __call__(self, contender):
            return next(slow) if contender.name == tiles[0] else super().__call__(contender)

    assert measure(device, Hiccup()).entry.winner.config == tiles[0]


def no_launch(y):
    raise RuntimeError("out of resource: shared memory\nmore")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda y: y * 1.01, "wrong: output 0: error "),
        (lambda y: y.masked_fill(torch.arange(y.shape[0], device=y.device)[:, None] == 31, float("nan")), "error nan"),
        (no_launch, "RuntimeError: out of resource: shared memory"),
    ],
)
def test_what_is_wrong_or_fails_is_never_timed(change, why, device, tiles, monkeypatch):
    spoil(monkeypatch, tiles[0], change)
    clock = Clock(**{tiles[0]: 1e-6, tiles[1]: 2e-6})
    result = measure(device, clock)
    ((name, reason),) = result.excluded
    assert name == tiles[0]
    assert why in reason
    assert result.entry.winner.config == tiles[1]
    assert clock.calls == (WARM_UP + 3) * len(tiles)  # the library and all tiles but one


def test_a_store_that_is_missing_is_seen_although_others_left_right_numbers(device, tiles, monkeypatch):
    spoil(monkeypatch, tiles[0], lambda y: torch.empty_like(y))
    assert tiles[0] in dict(measure(device, Clock()).excluded)


def test_who_fails_while_timed_is_left_out(device, tiles):
    class Crash(Clock):
        def __call__(self, contender):
            if contender.name == tiles[0]:
                raise torch.OutOfMemoryError("much")
            return super().__call__(contender)

    result = measure(device, Crash())
    assert result.excluded == ((tiles[0], "out of memory"),)
    assert result.entry.winner.side == "library"


def test_nothing_right_gives_no_entry(device, monkeypatch):
    monkeypatch.setattr(Product, "run", lambda self, operands: (torch.zeros(32, 32),))
    result = measure(device, Clock())
    assert result.entry is None
    assert "library" in dict(result.excluded)


def test_every_product_of_a_layer_is_right_on_every_tile(device):
    """Forward and backward, in the dtype whose tiles are many; a wide row count is the GPU's business."""
    for product in of_layer(16, 32, "gelu_erf", training=True):
        result = measure(device, Clock(), product, rows=16)
        assert not result.excluded, result
        assert result.entry.runner_up is not None


def test_a_run_goes_on_where_it_was(device, tmp_path, tiles):
    file, machine = tmp_path / "deep" / "table.json", Machine.of(device, architecture(device))
    arguments = ([PRODUCT], (16, 32), DTYPE, device)
    first = tune(*arguments, TableFile(file, machine), Clock(library=1e-6), rounds=1)
    next(first)
    key = ("linear", DTYPE, "ieee", 32, 16, 16)
    assert set(read(file, machine)[1]) == {key}, "written after every measurement"
    first.close()
    second = Clock(**{tiles[0]: 1e-6})
    assert [result.rows for result in tune(*arguments, TableFile(file, machine), second, rounds=1)] == [32]
    entries = read(file, machine)[1]
    assert {entry.winner.side for entry in entries.values()} == {"library", "triton"}
    assert entries[key].winner.side == "library"
    assert not list(tune(*arguments, TableFile(file, machine), Clock(), rounds=1))
    assert len(list(tune(*arguments, TableFile(file, machine), second, rounds=1, again=True))) == 2
    assert read(file, machine)[1][key].winner.side == "triton"
    assert [path.name for path in file.parent.iterdir()] == ["table.json"], "nothing half-written is left"


def test_the_table_of_another_machine_is_left_alone(device, tmp_path):
    file = tmp_path / "table.json"
    here = Machine.of(device, architecture(device))
    TableFile(file, here).put(("linear", DTYPE, "ieee", 32, 16, 16), measure(device, Clock()).entry)
    before = file.read_text()
    for there in (replace(here, device="other"), replace(here, torch_version="1.0")):
        with pytest.raises(TableError, match=r"table\.json: .*which is what this machine has.*nothing was measured"):
            TableFile(file, there)
    assert file.read_text() == before


def test_rows_are_powers_of_two():
    assert tuning.parse_rows("128, 64,128") == (128, 64)
    for text, got in (("100", "100"), ("", ""), ("64,-2", "-2"), ("64,,128", ""), ("0", "0")):
        with pytest.raises(tuning.InputError, match=f"expected powers of two .* got '{got}'"):
            tuning.parse_rows(text)
    assert tuning.parse_rows(",".join(map(str, tuning.ROWS))) == tuning.ROWS


# The command.


@pytest.fixture
def as_if_on_a_gpu(device, monkeypatch):
    """The whole command on whatever is there, with a clock that prefers the library."""
    monkeypatch.setattr(tuning, "supported_device", lambda dtype: device)
    monkeypatch.setattr(tuning, "Timer", lambda device, kernel: Clock(library=20e-6))


@pytest.fixture
def checkpoint(tmp_path) -> str:
    folder = tmp_path / "checkpoint"
    transformers.BertConfig(hidden_size=16, intermediate_size=32, num_attention_heads=1).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_the_command_measures_prints_and_keeps(checkpoint, tmp_path, device):
    file = tmp_path / "table.json"
    command = ["tune", checkpoint, "--dtype", "fp16", "--rows", "16", "--out", str(file), "--rounds", "1"]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    _, entries = read(file, Machine.of(device, architecture(device)))
    assert {key[0] for key in entries} == {"linear", "linear_activation", "qkv_linear"}
    assert all(key[5] == 16 for key in entries)
    assert "4 measured, 4 in" in done.output
    done = runner.invoke(app, [*command, "--training"])
    assert done.exit_code == 0, done.output
    assert "8 measured, 12 in" in done.output
    assert {key[0] for key in read(file)[1]} == set(GEMM_PRODUCTS)
    shown = runner.invoke(app, ["tune", "--check", "--out", str(file)])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("20.0") == 12


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_the_command_prints_the_wrong_ones(checkpoint, tmp_path, tiles, monkeypatch):
    spoil(monkeypatch, tiles[0], lambda y: y + 1)
    done = runner.invoke(
        app, ["tune", checkpoint, "--dtype", "fp16", "--rows", "16", "--out", str(tmp_path / "t"), "--rounds", "1"]
    )
    assert done.exit_code == 1, done.output
    assert f"left out of linear 16x16, 16 rows: {tiles[0]}: wrong" in done.output


@pytest.mark.usefixtures("as_if_on_a_gpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "bert-huge"],
            "expected a configuration among bert-tiny, bert-mini, ",
        ),
        (["somewhere", "--config", "bert-base"], "expected a checkpoint or --config, got both"),
        (["--rows", "100"], "expected powers of two"),
    ],
)
def test_what_is_named_wrongly_is_one_line(arguments, message, tmp_path):
    done = runner.invoke(app, ["tune", *arguments, "--out", str(tmp_path / "table.json")])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (tmp_path / "table.json").exists()


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_a_file_that_is_no_table_is_not_written_over(checkpoint, tmp_path):
    file = tmp_path / "notes.json"
    file.write_text(json.dumps({"mine": 1}))
    done = runner.invoke(app, ["tune", checkpoint, "--out", str(file)])
    assert done.exit_code == 2, done.output
    assert "notes.json" in done.output
    assert json.loads(file.read_text()) == {"mine": 1}
    assert runner.invoke(app, ["tune", "--check", "--out", str(file)]).exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_nothing_is_written(tmp_path):
    for arguments in ([], ["--check"], ["--config", "bert-large", "--training"]):
        out = [] if arguments == ["--check"] else ["--out", str(tmp_path / "table.json")]
        done = runner.invoke(app, ["tune", *arguments, *out])
        assert done.exit_code == 2, done.output
        assert "expected a GPU to measure on, and this machine has none" in done.output
    assert not list(tmp_path.iterdir())


def test_the_table_prints_a_line_for_each_entry(device, tmp_path):
    console = Console(record=True, width=120)
    entry = measure(device, Clock(library=20e-6)).entry
    key = ("linear", DTYPE, "ieee", 32, 16, 32)
    tuning.print_entries({key: entry}, "here", console)
    text = console.export_text()
    for cell in ("linear", "32 x 16", "float16", "library", "20.0", "50000.00x"):
        assert cell in text
