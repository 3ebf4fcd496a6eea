"""What the host does for one call: `python -m benchmarks.launch` prints microseconds of every operation and of a layer.

Needs no GPU. Everything of a call runs as it would on one: argument checks, PyTorch's dispatcher, the launcher in Python,
Triton's own Python launcher, autograd's bookkeeping. Only the last step is left out: a kernel is neither compiled nor
started, and the driver is not asked. The tensors are tiny and on the CPU, and products that would go to the library on sm_90
do so, so that their dispatch is counted with next to no arithmetic. At a small batch a GPU waits for exactly this. The clock
is the process's own, which stands still while other processes have its core.
"""

import cProfile
import os
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastbert
from fastbert.kernels import functional, use_backend
from fastbert.kernels.device import pretend
from fastbert.kernels.matmul.choose import select_gemm

from .harness.conditions import cpu_name

ARCHITECTURE = "sm_90"
HIDDEN, INNER, TOKENS = 64, 128, 8


class _Kernel:
    """A compiled kernel that does nothing when it is started."""

    function = packed_metadata = 0

    def __init__(self, started: list[str], name: str) -> None:
        self.started, self.name = started, name

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        self.started.append(self.name)


class _Driver:
    """As much of Triton's driver as a launch asks for."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@contextmanager
def without_launches() -> Iterator[list[str]]:
    """CPU tensors take the way of a GPU's up to the start of a kernel, whose name is added to the list instead."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    started: list[str] = []

    def do_compile(self: Any, key: Any, signature: Any, device: int, *_: Any) -> Any:
        _ = self.cache_key  # a real compilation notes the globals here that every launch compares
        kernel = self.device_caches[device][0][key] = _Kernel(started, self.fn.__name__)
        return kernel

    compile_kernel = JITFunction._do_compile
    driver.set_active(_Driver())
    JITFunction._do_compile = do_compile
    try:
        with pretend(ARCHITECTURE), use_backend("triton"):
            yield started
    finally:
        JITFunction._do_compile = compile_kernel
        driver._active = None


def operations(dtype: torch.dtype, training: bool) -> dict[str, Callable[[], Tensor]]:
    """One call of each operation of a layer, as the model makes it."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_(training)

    x, wide = draw(TOKENS, HIDDEN), draw(TOKENS, 3, 1, HIDDEN)
    square, bias, weight = draw(HIDDEN, HIDDEN), draw(HIDDEN), draw(HIDDEN)
    weight_in, bias_in, weight_out = draw(INNER, HIDDEN), draw(INNER), draw(HIDDEN, INNER)
    cu_seqlens = torch.tensor([0, TOKENS], dtype=torch.int32)
    schedule = functional.attention_schedule(cu_seqlens, TOKENS, TOKENS, wide)
    return {
        "qkv_linear": lambda: functional.qkv_linear(x, (square,) * 3, (bias,) * 3),
        "attention": lambda: functional.attention(wide, cu_seqlens, TOKENS, schedule=schedule),
        "linear": lambda: functional.linear(x, square),
        "layer_norm": lambda: functional.layer_norm(x, weight, bias, x, x_bias=bias),
        "feed_forward": lambda: functional.feed_forward(x, weight_in, bias_in, weight_out),
    }


def microseconds(call: Callable[[], object], rounds: int, calls: int) -> float:
    """The processor time of one call in a block of so many: the median over the rounds, after two blocks that do not count."""
    seconds = []
    for turn in range(rounds + 2):
        begin = time.process_time()
        for _ in range(calls):
            call()
        if turn >= 2:
            seconds.append((time.process_time() - begin) / calls)
    return statistics.median(seconds) * 1e6


def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward; gradients pile up in the same tensors, as with a training step's further micro-batches."""
    dy = torch.ones_like(forward())

    def both() -> None:
        forward().backward(dy)

    return both


def encoder(layers: int, dtype: torch.dtype, training: bool) -> Callable[[], Tensor]:
    """fastbert's encoder of so many layers with bert-base's structure, on a packed batch."""
    config = transformers.BertConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=1, num_hidden_layers=layers, vocab_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = fastbert.BertModel(config, add_pooling_layer=False).to(dtype).train(training)
    ids, cu_seqlens = torch.arange(TOKENS), torch.tensor([0, TOKENS], dtype=torch.int32)
    return lambda: model(ids, cu_seqlens=cu_seqlens, max_seqlen=TOKENS).last_hidden_state


def per_layer(dtype: torch.dtype, training: bool, rounds: int, calls: int, started: list[str]) -> tuple[float, float]:
    """(microseconds, kernels started) of one layer more: twelve layers less two, over ten."""
    found = []
    for layers in (2, 12):
        forward = encoder(layers, dtype, training)
        call = step(forward) if training else forward
        call()
        started.clear()
        call()
        kernels = len(started)
        found.append((microseconds(call, rounds, calls), kernels))
    (few, few_kernels), (many, many_kernels) = found
    return (many - few) / 10, (many_kernels - few_kernels) / 10


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls, whose median counts.")] = 15,
    calls: Annotated[int, typer.Option(min=1, help="Calls in a block.")] = 50,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time of a layer goes.")] = False,
) -> None:
    """Print the microseconds of every operation and of a layer of bert-base, in inference and in training."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise typer.BadParameter("expected TRITON_INTERPRET unset: the interpreter has no launcher to measure")
    torch.set_num_threads(1)
    dtype = torch.bfloat16
    table = Table(title="host time of one call, microseconds; kernels started in brackets")
    for column in ("", "inference", "forward + backward"):
        table.add_column(column, justify="right" if column else "left")
    with without_launches() as started:
        cells: dict[str, list[str]] = {}
        for training in (False, True):
            with nullcontext() if training else torch.inference_mode():
                for name, call in operations(dtype, training).items():
                    run = step(call) if training else call
                    run()
                    started.clear()
                    run()
                    kernels = len(started)
                    cells.setdefault(name, []).append(f"{microseconds(run, rounds, calls):.0f} ({kernels})")
                time_of_layer, kernels_of_layer = per_layer(dtype, training, rounds, calls, started)
                cells.setdefault("a layer", []).append(f"{time_of_layer:.0f} ({kernels_of_layer:.0f})")
        cells["choosing a product's side"] = [f"{_choice(rounds, calls):.2f}", ""]
        for name, row in cells.items():
            table.add_row(name, *row)
        if profile:
            _profile(dtype, calls)
    console = Console(width=120, highlight=False)
    console.print(f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, triton {_triton()}, bf16")
    console.print(table)


def _choice(rounds: int, calls: int) -> float:
    device = torch.device("cuda", 0)
    return microseconds(lambda: select_gemm("linear", 512, 768, 768, torch.bfloat16, device), rounds, calls)


def _profile(dtype: torch.dtype, calls: int) -> None:
    for training in (False, True):
        with nullcontext() if training else torch.inference_mode():
            forward = encoder(12, dtype, training)
            call = step(forward) if training else forward
            call()
            profiler = cProfile.Profile()
            with profiler:
                for _ in range(calls):
                    call()
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)


def _triton() -> str:
    import triton

    return triton.__version__


if __name__ == "__main__":
    typer.run(main)
