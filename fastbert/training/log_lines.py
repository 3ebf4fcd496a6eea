"""What a training prints: a line for each reading, and on a terminal a bar below them; not transformers' dictionaries.

Everything that is logged is in the run's history too, and in TensorBoard where that is installed.
"""

import textwrap
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from fastbert.utils.printing import print_line

WIDTH = 80
WORTH_SAYING = 0.1  # share of the time spent waiting for data


class LogLines(TrainerCallback):
    """Prints the step, loss, learning rate, tokens/s and time left of each reading.

    tokens: how many this process was given so far, over all processes; None where the readings have `tokens_per_second`.
    evaluations: whether those are printed too. most: readings to print, spread over the run; None for all.
    """

    def __init__(
        self, console: Console, tokens: Callable[[], int] | None = None, *, evaluations: bool = True, most: int | None = None
    ) -> None:
        self.console, self.tokens, self.evaluations, self.most = console, tokens, evaluations, most
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock = Clock(state.max_steps)
        self.printed = state.global_step
        self.began_at = time.monotonic()
        self._start_reading()
        if self.console.is_terminal and state.is_world_process_zero:
            self.bar = _bar(self.console)
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, left="")
            self.bar.start()

    def _start_reading(self) -> None:
        self.busy, self.mark = 0.0, time.monotonic()
        self.before = 0 if self.tokens is None else self.tokens()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.busy += now - self.mark
        self.mark = now
        self.clock.step(state.global_step, now)
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, left=f"{duration(self.clock.left)} left")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mark = time.monotonic()  # the time of a checkpoint, as that of an evaluation, is no training

    on_evaluate = on_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs:
            self._print_reading(logs, state)
        elif "train_runtime" in logs:
            self._print(f"trained to step {state.global_step:,} in {duration(time.monotonic() - self.began_at)}")
        elif self.evaluations:
            names = {name.removeprefix("eval_").replace("_", " "): value for name, value in logs.items() if name != "epoch"}
            values = ", ".join(f"{name} {value:.4g}" for name, value in names.items())
            for line in textwrap.wrap(f"held out, step {state.global_step:,}: {values}", WIDTH, subsequent_indent="  "):
                self._print(line)

    def _print_reading(self, logs: dict[str, float], state: Any) -> None:
        step, steps = state.global_step, max(state.max_steps, 1)
        if self.most is not None and step < steps and (step - self.printed) * self.most < steps:
            return
        self.printed = step
        rate = logs.get("tokens_per_second")
        if rate is None and self.tokens is not None:
            rate = (self.tokens() - self.before) / max(self.busy, 1e-9)
        parts = [f"step {step:>{len(f'{steps:,}')},}/{steps:,}", f"loss {logs['loss']:.4f}"]
        parts.append(f"lr {logs.get('learning_rate', 0.0):.1e}")
        if rate is not None:
            parts.append(f"{rate:,.0f} tokens/s")
        if "mfu" in logs:
            parts.append(f"mfu {logs['mfu']:.0%}")
        if logs.get("data_wait", 0.0) >= WORTH_SAYING:
            parts.append(f"{logs['data_wait']:.0%} waiting for data")
        if step < steps:
            parts.append(f"{duration(self.clock.left)} left")
        self._print("  ".join(parts))
        self._start_reading()

    def _print(self, line: str) -> None:
        print_line(self.console, line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Clock:
    """The time left, from the steps since the first of this process, which is slow; evaluations and checkpoints included."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: tuple[int, float] | None = None
        self.left: float | None = None  # seconds; None where it is not known yet

    def step(self, number: int, now: float) -> None:
        if self.first is None:
            self.first = number, now
            return
        step, then = self.first
        self.left = (now - then) / max(number - step, 1) * (self.steps - number)


def duration(seconds: float | None) -> str:
    """In the two largest units: "12s", "3m05s", "1h03m", "2d04h"; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def _bar(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[left]}"))
    return Progress(*columns, console=console, transient=True)
