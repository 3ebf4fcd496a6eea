"""Measured tables: the file, what is wrong with it, and which of several is read."""

import json
from pathlib import Path

import pytest
import torch

from fastbert.kernels import device as device_facts
from fastbert.kernels.device import pretend
from fastbert.kernels.matmul import choose, table
from fastbert.kernels.matmul.choose import select_gemm
from fastbert.kernels.matmul.config import candidates
from fastbert.kernels.matmul.keys import Entry, Measured, Timed
from fastbert.kernels.matmul.table import Machine, TableError, load, read, to_json, user_file

CUDA = torch.device("cuda", 0)
MACHINE = Machine("NVIDIA H200", "sm_90", "2.13", "3.7")
CONFIG = candidates("fwd", torch.bfloat16, "ieee", "sm_90")[0]
TILE = CONFIG.name
KEY = ("linear", torch.bfloat16, "ieee", 768, 768, 1024)
BY_TRITON = Entry(Timed("triton", TILE, 41.0), Timed("library", None, 155.2))
BY_LIBRARY = Entry(Timed("library", None, 7.0))


def write(file: Path, entries=None, machine=MACHINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(to_json(machine, {KEY: BY_TRITON} if entries is None else entries)))
    return file


@pytest.fixture
def homes(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Where a user's own table and a shipped one would be, both empty."""
    monkeypatch.delenv("FASTBERT_TUNED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "tuned")
    return user_file(MACHINE), tmp_path / "tuned" / MACHINE.file_name


# The file.


def test_a_table_is_read_as_it_was_written(tmp_path):
    entries = {KEY: BY_TRITON, ("wgrad", torch.float32, "tf32", 3072, 768, 64): BY_LIBRARY}
    assert read(write(tmp_path / "table.json", entries), MACHINE) == (MACHINE, entries)
    assert MACHINE.file_name == "nvidia-h200-sm_90-torch2.13-triton3.7.json"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, r"format: expected 1, got 2"),
        (("device",), "", r"device: expected a text that is not empty, got ''"),
        (("versions",), {"torch": "2.13"}, r"versions: expected the fields torch, triton, got 'torch'"),
        (("entries",), {}, r"entries: expected a list, got 'dict'"),
        (("entries", 0, "operation"), "conv", r"entries\[0\]\.operation: expected one of linear, .*got 'conv'"),
        (("entries", 0, "dtype"), "int8", r"entries\[0\]\.dtype: expected one of bfloat16, .*got 'int8'"),
        (("entries", 0, "precision"), "tf16", r"entries\[0\]\.precision: expected one of ieee, tf32, got 'tf16'"),
        (("entries", 0, "N"), 768.0, r"entries\[0\]\.N: expected a whole number of at least 1, got 768\.0"),
        (("entries", 0, "rows"), 100, r"entries\[0\]\.rows: expected a power of two, got 100"),
        (("entries", 0, "winner", "microseconds"), 0, r"winner\.microseconds: expected a number above 0, got 0"),
        (("entries", 0, "winner", "microseconds"), float("nan"), r"winner\.microseconds: expected a number above 0, got nan"),
        (("entries", 0, "winner", "config"), None, r"winner\.config: expected a text that is not empty, got None"),
        (("entries", 0, "winner", "speed"), 1, r"winner: expected the fields side, config, microseconds, got '.*speed'"),
        (("entries", 0, "runner_up", "config"), "a", r"runner_up\.config: expected null, .*got 'a'"),
        (("entries", 0, "runner_up", "microseconds"), 40.0, r"expected no less than the winner's 41, got 40\.0"),
        (("entries", 0, "runner_up"), dict(side="triton", config="a", microseconds=50.0), "the side that did not win"),
    ],
)
def test_a_damaged_table_is_refused_by_the_name_of_the_field(path, value, message, tmp_path):
    content = to_json(MACHINE, {KEY: BY_TRITON})
    field = content
    for step in path[:-1]:
        field = field[step]
    field[path[-1]] = value
    file = tmp_path / "table.json"
    file.write_text(json.dumps(content))
    with pytest.raises(TableError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_what_is_no_table_is_refused(tmp_path):
    file = tmp_path / "table.json"
    for text, message in (("{", "expected JSON"), ("[]", "the file: expected an object, got 'list'")):
        file.write_text(text)
        with pytest.raises(TableError, match=message):
            read(file)
    content = to_json(MACHINE, {KEY: BY_TRITON})
    file.write_text(json.dumps(content | {"entries": content["entries"] * 2}))
    with pytest.raises(TableError, match=r"entries\[1\]: expected each product and number of rows once"):
        read(file)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Machine("NVIDIA H100", "sm_90", "2.13", "3.7"), "device"),
        (Machine("NVIDIA H200", "sm_80", "2.13", "3.7"), "architecture"),
        (Machine("NVIDIA H200", "sm_90", "2.12", "3.7"), "versions.torch"),
        (Machine("NVIDIA H200", "sm_90", "2.13", "3.6"), "versions.triton"),
    ],
)
def test_the_table_of_another_machine_is_refused(other, field, tmp_path):
    file = write(tmp_path / "table.json", machine=other)
    with pytest.raises(TableError, match=rf"{field}: expected '.*', which is what this machine has, got"):
        read(file, MACHINE)


# Which file.


def test_the_users_table_comes_before_the_shipped_one(homes):
    own, shipped = homes
    assert load(MACHINE).entries == {}
    other_key = (*KEY[:-1], 2048)
    write(shipped, {KEY: BY_LIBRARY, other_key: BY_LIBRARY})
    assert load(MACHINE).entries == {KEY: BY_LIBRARY, other_key: BY_LIBRARY}
    write(own)
    assert load(MACHINE).entries == {KEY: BY_TRITON, other_key: BY_LIBRARY}


@pytest.mark.parametrize("which", ["damaged", "foreign", "of unknown tiles"])
def test_an_unusable_table_is_a_warning_and_a_reason(which, homes, monkeypatch):
    own, shipped = homes
    write(shipped, {KEY: BY_LIBRARY})
    if which == "damaged":
        write(own).write_text("{}")
    elif which == "foreign":
        write(own, machine=Machine("NVIDIA H100", "sm_90", "2.13", "3.7"))
    else:
        write(own, {KEY: Entry(Timed("triton", "1x2x3", 1.0))})
    with pytest.warns(RuntimeWarning, match=f"the measured table cannot be used: {own}: ") as caught:
        measured = load(MACHINE)
    assert len(caught) == 1
    assert measured.entries == {KEY: BY_LIBRARY}, "the shipped one is whole"
    monkeypatch.setattr(choose, "measured_on", lambda index, arch: measured)
    with pretend("sm_90"):
        reason = select_gemm("wgrad", 64, 768, 768, KEY[1], CUDA).reason
    assert f"not yet timed; the measured table cannot be used: {own}: " in reason


def test_a_table_that_the_user_named_is_used_or_raises(homes, tmp_path, monkeypatch):
    own, _ = homes
    write(own, {KEY: BY_LIBRARY})
    named = tmp_path / "named.json"
    monkeypatch.setenv("FASTBERT_TUNED", str(named))
    with pytest.raises(FileNotFoundError):
        load(MACHINE)
    named.write_text("{}")
    with pytest.raises(TableError, match=r"named\.json: .*named by the environment variable FASTBERT_TUNED"):
        load(MACHINE)
    write(named)
    assert load(MACHINE).entries == {KEY: BY_TRITON}
    monkeypatch.setenv("FASTBERT_TUNED", "off")
    assert (load(MACHINE).entries, load(MACHINE).table_error) == ({}, "")


def test_the_tables_are_read_once(homes, monkeypatch):
    reads = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(table, "load", lambda machine: reads.append(machine) or Measured(machine.device, {KEY: BY_TRITON}))
    monkeypatch.setattr(device_facts, "_architecture", lambda index: "sm_90")
    table.forget_measured()
    try:
        for M in (1, 1000, 1024, 0):
            select_gemm("linear", M, 768, 768, torch.bfloat16, CUDA)
        assert [machine.device for machine in reads] == ["NVIDIA H200"]
        table.forget_measured()
        select_gemm("linear", 1, 768, 768, torch.bfloat16, CUDA)
        assert len(reads) == 2
    finally:
        table.forget_measured()
