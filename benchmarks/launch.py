"""What the host does for one call: `python -m benchmarks.launch` prints microseconds of operations, a layer and a model.

A layer and a model stand beside those of transformers (eager, SDPA), measured in turns in the same process.

Needs no GPU. Everything of a call runs as it would on an H100 (sm_90): argument checks, PyTorch's dispatcher, the launcher in
Python, Triton's own Python launcher, autograd's bookkeeping. Only the last step is left out: a kernel is neither compiled nor
started, and the driver is not called. The tensors are tiny and on the CPU; products that would go to the library on sm_90 do
so, which counts their dispatch with next to no arithmetic. At a small batch a GPU waits for exactly this. The clock is the
process's own, which does not run while other processes have its core.
"""

import cProfile
import os
import platform
import pstats
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastbert
from fastbert.kernels import functional
from fastbert.kernels.matmul.choose import select_gemm

from .harness.conditions import cpu_name
from .harness.fake_driver import without_launches

HIDDEN, INNER, TOKENS = 64, 128, 8
FEW, LAYERS = 2, 12
PRODUCTS = frozenset(("aten::mm", "aten::addmm", "aten::addmm_"))  # a kernel beside those of what they call, as for a bias
WARM_UP = 2
# Operations of PyTorch that start no kernel on a GPU: views, allocations, questions.
WITHOUT_KERNEL = frozenset(
    """_has_compatible_shallow_copy_type _local_scalar_dense _reshape_alias _unsafe_view alias as_strided chunk detach detach_
    empty empty_like empty_strided expand flatten is_nonzero item lift_fresh narrow new_empty numpy_T permute promote_types
    reshape resize_ resolve_conj resolve_neg result_type select set_ slice split split_with_sizes squeeze t to transpose unbind
    unflatten unsqueeze view view_as""".split()
)


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


def microseconds(calls: dict[str, Callable[[], object]], rounds: int, number: int) -> dict[str, float]:
    """The processor time of each call: the median over `rounds` blocks of `number`, in turns, after WARM_UP blocks."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + WARM_UP):
        for name, call in calls.items():
            begin = time.process_time()
            for _ in range(number):
                call()
            if turn >= WARM_UP:
                seconds[name].append((time.process_time() - begin) / number)
    return {name: statistics.median(found) * 1e6 for name, found in seconds.items()}


def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward; gradients add up in the same tensors."""
    dy = torch.ones_like(forward())

    def both() -> None:
        forward().backward(dy)

    return both


def model_call(library: str, layers: int, dtype: torch.dtype, training: bool) -> Callable[[], object]:
    """A call of a BERT with this many layers of bert-base's structure, on one sequence: forward; in training a whole step but
    for the optimizer, with gradients that were set to None before.

    library: 'fastbert' or 'transformers'.
    """
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=1,
        num_hidden_layers=layers,
        vocab_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=TOKENS,
    )
    config._attn_implementation = "sdpa"
    cls: Any = fastbert.BertModel if library == "fastbert" else transformers.BertModel
    model = cls(config, add_pooling_layer=False).to(dtype).train(training)
    ids = torch.arange(TOKENS)[None]
    if training:
        both = step(lambda: model(ids).last_hidden_state)

        def first_step() -> None:
            model.zero_grad(set_to_none=True)
            both()

        return first_step
    return lambda: model(ids).last_hidden_state


def kernels_of(call: Callable[[], object], started: list[str]) -> Counter[str]:
    """The kernels that a GPU would run in one call: Triton's by name, and PyTorch's operations that start one.

    started: where `without_launches` notes the former.
    """
    started.clear()
    with torch.autograd.profiler.profile(use_kineto=False) as recorded:
        call()
    found = Counter(started)
    for event in recorded.function_events:
        has_parts = any(_starts_kernel(child.name) for child in event.cpu_children)
        if _starts_kernel(event.name) and (event.name in PRODUCTS or not has_parts):
            found[event.name.removeprefix("aten::")] += 1
    return found


def _starts_kernel(event: str) -> bool:
    return event.startswith("aten::") and event.removeprefix("aten::") not in WITHOUT_KERNEL


def per_layer(training: bool, rounds: int, calls: int, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """(microseconds of one more layer, of a model of LAYERS) of each library; a layer is the difference to a model of FEW."""
    libraries = ("transformers", "fastbert")
    measured = {
        f"{library} {layers}": model_call(library, layers, dtype, training) for library in libraries for layers in (FEW, LAYERS)
    }
    for call in measured.values():
        call()
    found = microseconds(measured, rounds, calls)
    return {
        library: ((found[f"{library} {LAYERS}"] - found[f"{library} {FEW}"]) / (LAYERS - FEW), found[f"{library} {LAYERS}"])
        for library in libraries
    }


def kernels_of_a_layer(library: str, training: bool, dtype: torch.dtype, started: list[str]) -> Counter[str]:
    few, more = (model_call(library, layers, dtype, training) for layers in (1, 2))
    for call in (few, more):
        call()
    counted = kernels_of(more, started)
    counted.subtract(kernels_of(few, started))
    return +counted


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls, whose median counts.")] = 15,
    calls: Annotated[int, typer.Option(min=1, help="Calls in a block.")] = 50,
    kernels: Annotated[bool, typer.Option("--kernels", help="Name the kernels of a layer.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time of a model goes.")] = False,
) -> None:
    """Print the host's microseconds for every operation, and for a layer and a model of bert-base beside transformers'."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise typer.BadParameter("expected TRITON_INTERPRET unset: the interpreter has no launcher to measure")
    torch.set_num_threads(1)
    dtype = torch.bfloat16
    console = Console(width=120, highlight=False)
    console.print(
        f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, triton {_triton()}, "
        f"transformers {transformers.__version__}, bf16"
    )
    with without_launches() as started:
        console.print(_operations_table(dtype, rounds, calls, started))
        console.print(_models_table(dtype, rounds, calls, started))
        if kernels:
            for training in (False, True):
                named = kernels_of_a_layer("fastbert", training, dtype, started)
                words = ", ".join(name if number == 1 else f"{number} {name}" for name, number in named.items())
                console.print(f"a layer, {_phase(training)}: {words}")
        if profile:
            _profile(dtype, calls)


def _operations_table(dtype: torch.dtype, rounds: int, calls: int, started: list[str]) -> Table:
    table = Table(title="host time of one call, microseconds; kernels in brackets")
    for column in ("", "inference", "forward + backward"):
        table.add_column(column, justify="right" if column else "left")
    cells: dict[str, list[str]] = {}
    for training in (False, True):
        with nullcontext() if training else torch.inference_mode():
            found = {name: step(call) if training else call for name, call in operations(dtype, training).items()}
            for call in found.values():
                call()
            times = microseconds(dict(found), rounds, calls)
            for name, call in found.items():
                cells.setdefault(name, []).append(f"{times[name]:.0f} ({kernels_of(call, started).total()})")
    for name, row in cells.items():
        table.add_row(name, *row)
    table.add_row("selecting library or Triton", f"{_selection(rounds, calls):.2f}", "")
    return table


def _models_table(dtype: torch.dtype, rounds: int, calls: int, started: list[str]) -> Table:
    table = Table(title=f"host time of BERT on {TOKENS} tokens, microseconds; kernels of a layer in brackets")
    for column in ("", "transformers", "fastbert", "fastbert / transformers"):
        table.add_column(column, justify="right" if column else "left")
    for training in (False, True):
        with nullcontext() if training else torch.inference_mode():
            times = per_layer(training, rounds, calls, dtype)
            counts = [kernels_of_a_layer(library, training, dtype, started).total() for library in times]
        (theirs, whole_theirs), (ours, whole_ours) = times.values()
        row = (f"{theirs:.0f} ({counts[0]})", f"{ours:.0f} ({counts[1]})", f"{ours / theirs:.2f}")
        table.add_row(f"a layer, {_phase(training)}", *row)
        row = (f"{whole_theirs:.0f}", f"{whole_ours:.0f}", f"{whole_ours / whole_theirs:.2f}")
        table.add_row(f"{LAYERS} layers, {_phase(training)}", *row)
    return table


def _phase(training: bool) -> str:
    return "forward + backward" if training else "inference"


def _selection(rounds: int, calls: int) -> float:
    """Microseconds to decide who computes one product."""
    device = torch.device("cuda", 0)
    call = dict(select=lambda: select_gemm("linear", 512, 768, 768, torch.bfloat16, device))
    return microseconds(call, rounds, calls)["select"]


def _profile(dtype: torch.dtype, calls: int) -> None:
    for training in (False, True):
        with nullcontext() if training else torch.inference_mode():
            call = model_call("fastbert", LAYERS, dtype, training)
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
