"""Every pipelined kernel under the schedule least kind to it, against float64.

Copies land as soon as they are issued and asynchronous products read their operands only when they are waited for, both of
which PTX allows: a slot of shared memory that is written too early gives a wrong answer. The loop of every kernel runs at least
three times as often as it has stages, so that every slot is used again. Which kernels are pipelined is read from their PTX.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.ahead_of_time import compile_variant
from fastbert.kernels import fp8
from fastbert.kernels.matmul.config import GemmConfig, candidates
from fastbert.kernels.matmul.pointers import gemm_dgrad, gemm_fwd, gemm_wgrad
from fastbert.kernels.specs import attention
from fastbert.kernels.specs.accuracy import OUT_FACTOR, Accuracy, check_operation, compare_with_float64
from fastbert.kernels.specs.matrix_unit import tf32_products
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.kernels.specs.spec import KernelVariant
from tests.compiled.pipelines import recorded
from tests.compiled.plan import KINDS, Kind

TURNS = 3  # how often every slot is used, at least
RAGGED = 16  # columns of the last step of a sum: as few as copies of 16 bytes need, which Triton knows of multiples of 16 only
BF16, FP16, FP32, TF32 = KINDS


@dataclass(frozen=True)
class Case:
    """check: launches the kernels and returns the accuracy of what they computed, in numbers of this kind.

    kernels: those that it is about. loops: whether they have a loop that copies ahead where it has stages. full: left out
    without --full.
    """

    name: str
    kind: Kind
    kernels: tuple[str, ...]
    check: Callable[[], list[Accuracy]]
    full: bool = True
    loops: bool = True

    def __str__(self) -> str:
        return self.name


def draw(kind: Kind, *shape: int, std: float = 1.0) -> Tensor:
    return (torch.randn(shape) * std).to(kind.dtype)


def multiplied_as(kind: Kind) -> AbstractContextManager[None]:
    """Within the `with` block PyTorch multiplies as the matrix unit does."""
    return tf32_products() if kind.precision == "tf32" else nullcontext()


def judge(kind: Kind, results: dict[str, Tensor], reference: Callable, *operands: Tensor, **options: Any) -> list[Accuracy]:
    """The accuracy of each named result of reference(*operands), which returns as many tensors."""
    with multiplied_as(kind):
        same_dtype, exact = reference(*operands), reference(*(operand.double() for operand in operands))
    return [
        compare_with_float64(name, result, same, right, OUT_FACTOR, **options)
        for (name, result), same, right in zip(results.items(), same_dtype, exact, strict=True)
    ]


def sum_length(config: GemmConfig) -> int:
    """Of a sum that is long enough for every part of it, with a ragged end."""
    return TURNS * config.num_stages * config.inner * (config.splits or 1) + RAGGED


def forward(config: GemmConfig, parts: int, kind: Kind) -> list[Accuracy]:
    """y = x @ weight.T + bias, on two rows of tiles, and in persistent forms more tiles than programs."""
    K = sum_length(config)
    N = config.columns if parts == 3 and config.structure != "pointers" else config.columns + RAGGED
    M = config.rows + 1 if config.structure in ("pointers", "tma") else 3 * config.rows * config.programs + 1
    x, biases = draw(kind, M, K), [draw(kind, N) for _ in range(parts)]
    weights = [draw(kind, N, K, std=K**-0.5) for _ in range(parts)]
    y, _ = gemm_fwd(x, weights, biases, None, False, config=config)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (torch.addmm(bias, x, weight.t()),)

    return judge(kind, {"y": y}, plain, x, torch.cat(weights), torch.cat(biases))


def dgrad(config: GemmConfig, parts: int, kind: Kind) -> list[Accuracy]:
    M, N, K = config.rows + 1, sum_length(config), config.columns + RAGGED
    dy, weights = draw(kind, M, parts * N), [draw(kind, N, K, std=N**-0.5) for _ in range(parts)]
    dx, *_ = gemm_dgrad(dy, weights, config=config)
    return judge(kind, {"dx": dx}, lambda dy, weight: (dy @ weight,), dy, torch.cat(weights))


def dgrad_activation(config: GemmConfig, kind: Kind) -> list[Accuracy]:
    """du = (dy @ weight) * relu'(u), its column sums and relu(u)."""
    M, N, K = config.rows + 1, sum_length(config), config.columns + RAGGED
    dy, weight, u = draw(kind, M, N), draw(kind, N, K, std=N**-0.5), draw(kind, M, K)
    results = dict(zip(("du", "its sum", "h"), gemm_dgrad(dy, [weight], u, "relu", True, True, config=config)))

    def plain(dy: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        du = dy @ weight * (u > 0)
        return du, du.sum(0), u.relu()

    return judge(kind, results, plain, dy, weight, u, summed_rows=M)


def wgrad(config: GemmConfig, kind: Kind) -> list[Accuracy]:
    M, N, K = sum_length(config) + 1, config.rows + RAGGED, config.columns + RAGGED
    dy, x = draw(kind, M, N), draw(kind, M, K)
    dweight = gemm_wgrad(dy, x, config=replace(config, splits=1))
    return judge(kind, {"dweight": dweight}, lambda dy, x: (dy.t() @ x,), dy, x)


def attend(kind: Kind, seqlens: tuple[int, ...], head_dim: int, causal: bool, dropout_p: float) -> list[Accuracy]:
    """out and dqkv of one head."""
    inputs: dict[str, Any] = {
        "qkv": draw(kind, sum(seqlens), 3, 1, head_dim),
        "cu_seqlens": torch.tensor([0, *torch.tensor(seqlens).cumsum(0)], dtype=torch.int32),
        "max_seqlen": max(seqlens),
        "softmax_scale": None,
        "causal": causal,
    }
    if dropout_p:
        inputs |= {"dropout_p": dropout_p, "seed": torch.tensor([4321]), "stream": 3}
    return check_operation(attention.SPECS[0], inputs, kind.dtype)


def fp8_linear(rows: int, grouped: bool) -> list[Accuracy]:
    K, N = TURNS * 4 * fp8.GROUP + RAGGED, fp8.GROUP + RAGGED
    q, scale = fp8.quantize_ref(draw(FP32, rows, K), fp8.GROUP if grouped else None)
    weight_q, weight_scale = fp8.quantize_ref(draw(FP32, N, K, std=K**-0.5))
    inputs = dict(q=q, scale=scale, weight_q=weight_q, weight_scale=weight_scale[:, 0].contiguous(), bias=draw(BF16, N))
    (spec,) = (spec for spec in ALL_SPECS if spec.name == "fp8_linear")
    return check_operation(spec, inputs | {"out_dtype": BF16.dtype}, BF16.dtype)


def product_cases(arch: str, kind: Kind) -> Iterator[Case]:
    """Every tile of every product that ships. In the default set the smallest of each structure, in bf16."""
    seen: set[tuple[str, ...]] = set()

    def case(product: str, structure: str, config: GemmConfig, kernel: str, function: Callable, *parts: int) -> Case:
        what = (f"{'qkv ' * (parts == (3,))}{product}", structure)
        full = kind != BF16 or what in seen
        seen.add(what)
        return Case(f"{kind} {what[0]} {config.name}", kind, (kernel,), lambda: function(config, *parts, kind), full)

    for config in reversed(candidates("fwd", kind.dtype, kind.precision, arch)):
        structure = "split" if config.splits else config.structure
        kernel = {"split": "gemm_fwd_split_kernel", "pointers": "gemm_fwd_kernel"}.get(structure, "gemm_fwd_tma_kernel")
        for parts in (1, 3):
            yield case("fwd", structure, config, kernel, forward, parts)
    for product, function in (("dgrad", dgrad), ("dgrad_activation", dgrad_activation), ("wgrad", wgrad)):
        for config in reversed(candidates(product, kind.dtype, kind.precision, arch)):
            kernel = "gemm_wgrad_kernel" if product == "wgrad" else "gemm_dgrad_kernel"
            for parts in ((1,), (3,)) if product == "dgrad" else ((),):
                yield case(product, "pointers", config, kernel, function, *parts)


def attention_cases(arch: str) -> Iterator[Case]:
    """Loops over blocks of up to 128 keys in two stages. Tiles of whole sequences have no loop, but asynchronous work."""
    long = ("attention_fwd_kernel", "attention_bwd_dq_kernel", "attention_bwd_dkdv_kernel")
    short = ("attention_fwd_short_kernel", "attention_bwd_short_kernel")

    def case(name: str, kernels: tuple[str, ...], kind: Kind, *arguments: Any, full: bool = True, loops: bool = True) -> Case:
        return Case(f"attention {kind} {name}", kind, kernels, lambda: attend(kind, *arguments), full, loops)

    yield case("short", short, BF16, (30, 20, 9, 64), 64, False, 0.0, full=False, loops=False)
    yield case("whole", ("attention_bwd_whole_kernel",), BF16, (60, 128), 64, False, 0.0, full=False, loops=False)
    yield case("blocks of 64", long, BF16, (457,), 64, False, 0.1 if arch == "sm_90" else 0.0, full=False)  # in two stages
    yield case("blocks of 128", long, BF16, (777,), 64, False, 0.0)
    for kind in (BF16, FP16):
        for head_dim in (24, 32, 128):
            yield case(f"head_dim {head_dim}", long, kind, (777,), head_dim, False, 0.0)
            seqlens = (457,) if head_dim > 64 else (777,)  # narrower heads have three stages on sm_80
            yield case(f"head_dim {head_dim} dropout", long, kind, seqlens, head_dim, False, 0.1)
        yield case("causal", long, kind, (1700,), 64, True, 0.0)
    for kind in (FP32, TF32):
        yield case("dropout", long, kind, (457,), 64, False, 0.1)


def cases(arch: str) -> list[Case]:
    found = [case for kind in KINDS for case in product_cases(arch, kind)] + list(attention_cases(arch))
    for rows, grouped in ((3, False), (3, True), (300, False), (300, True)) if arch == "sm_90" else ():
        check = lambda rows=rows, grouped=grouped: fp8_linear(rows, grouped)  # noqa: E731
        found.append(Case(f"fp8 {rows} rows{' grouped' * grouped}", BF16, ("fp8_gemm_kernel",), check, full=rows > 3))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In the full set also under the usual schedule, where the detectors look on."""
    if "case" in metafunc.fixturenames:
        arch, full = metafunc.config.getoption("--compiled", None), metafunc.config.getoption("--full", False)
        chosen = [case for case in cases(arch or "sm_90") if full or not case.full]
        metafunc.parametrize("case", chosen, ids=str)
        metafunc.parametrize("late", [True, False] if full else [True], ids=lambda late: "late" if late else "usual")


def test_is_right(case, late, emulator):
    with case.kind.chosen(), emulator.settings.changed(late_products=late), recorded() as launches:
        accuracies = case.check()
    for kernel in case.kernels:
        assert any(launch.kernel == kernel for launch in launches), f"{kernel} did not run"
    for launch in launches:
        if launch.kernel in case.kernels:
            assert launch.is_pipelined == (case.loops and launch.num_stages > 1), launch.kernel
            assert not launch.is_pipelined or launch.steps >= TURNS * launch.num_stages, launch.kernel
    failed = [str(accuracy) for accuracy in accuracies if not accuracy.passed]
    assert not failed, "\n".join(failed)


def uncovered(arch: str, every_variant: bool) -> list[tuple[str, KernelVariant]]:
    """Variants, or one of each, of the kernels that the specs name and no case runs."""
    covered = {kernel for case in cases(arch) for kernel in case.kernels}
    found: dict[str, list[tuple[str, KernelVariant]]] = {}
    for spec in ALL_SPECS:
        for variant in spec.variants():
            if variant.kernel.__name__ not in covered and (not variant.targets or arch in variant.targets):
                found.setdefault(variant.kernel.__name__, []).append((spec.name, variant))
    return [one for variants in found.values() for one in (variants if every_variant else variants[:1])]


def test_no_other_kernel_is_asynchronous(target, emulator, pytestconfig):
    """So that a kernel that begins to pipeline needs a case above."""
    arch = f"sm_{target}"
    for operation, variant in uncovered(arch, pytestconfig.getoption("--full")):
        row = compile_variant(operation, variant, arch)
        assert not row.async_copies, variant.name
        assert not row.bulk_copies, variant.name
        assert row.matrix_instructions != "wgmma", variant.name
