"""`fastbert demo` on a busy machine: it says so, measures again, and stops."""

import pytest
import torch
from rich.console import Console

from fastbert.utils.timing import Timing
from fastbert.verification import demo

STEADY, NOISY = (1.0, 1.01, 1.0, 0.99, 1.0), (1.0, 2.0, 1.0, 2.0, 1.0)
LABELS = {"transformers": "transformers (sdpa)", "fastbert": "fastbert"}


@pytest.fixture
def shown(monkeypatch):
    """What the demo prints of its timings, given those of fastbert in each try; transformers' are steady."""

    def show(*tries: tuple[float, ...]) -> str:
        waiting = iter(tries)

        def interleaved(calls, device, *, rounds: int) -> dict[str, Timing]:
            return {"transformers": Timing(STEADY), "fastbert": Timing(next(waiting))}

        monkeypatch.setattr(demo, "interleaved", interleaved)
        console = Console(record=True, width=200, quiet=False)
        timings = demo._time({}, torch.device("cpu"), 5, console)
        demo._print_timings(timings, LABELS, 5, 1000, console)
        assert next(waiting, None) is None  # every try was made
        return console.export_text()

    return show


def test_a_quiet_machine_is_measured_once(shown):
    text = shown(STEADY)
    assert "noisy" not in text
    assert "1.00x" in text


def test_a_noisy_machine_is_measured_again(shown):
    text = shown(NOISY, NOISY, STEADY)
    assert text.count("The machine is noisy (spread ±50%): measuring again ...") == 2
    assert "too noisy" not in text


def test_a_machine_that_stays_noisy_is_said_below_the_figures(shown):
    text = shown(*[NOISY] * demo.TRIES)
    assert text.count("measuring again") == demo.TRIES - 1
    assert "too noisy for these figures: spread ±50% at best, above 20%" in text.rpartition("ratio")[2]


def test_nobody_waits_long(shown, monkeypatch):
    monkeypatch.setattr(demo, "SECONDS", 0.0)
    assert "too noisy" in shown(NOISY)
