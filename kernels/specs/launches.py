"""Launches written down instead of made: what an operation would compile for a target, as rows of the codegen table.

The operations themselves run, forward and backward, on small CPU tensors, and make their own choices; only the start of a
kernel is replaced. So a row cannot differ from a launch, and a new choice needs no entry anywhere.
"""

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from ..backend import use_backend
from ..device import MULTIPROCESSORS, is_amd, pretend
from .spec import KernelVariant

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
}
DIVISIBILITY = 16  # bytes of an address, or units of a number: what Triton compiles for
MANY_MULTIPROCESSORS = 304  # of an MI300X
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
COMPLETE = ("sm_80", "sm_90")  # for the others, BERT's own launches


@contextmanager
def written_down(target: str, precision: str = "ieee", multiprocessors: int | None = None) -> Iterator[list[KernelVariant]]:
    """Within the block, operations on CPU tensors launch for `target`, and each launch is added to the list instead.

    precision: how float32 is multiplied, 'tf32' or 'ieee'. multiprocessors: those of the usual card where None. What a launch
    would have written stays as it was allocated.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    found: list[KernelVariant] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        found.append(launch_of(self, args, options, target))

    classes = (JITFunction, InterpretedFunction)
    before = [one.run for one in classes]
    was = torch.backends.cuda.matmul.fp32_precision
    for one in classes:
        one.run = run
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        with pretend(target, multiprocessors or MULTIPROCESSORS.get(target, MANY_MULTIPROCESSORS)), use_backend("triton"):
            yield found
    finally:
        torch.backends.cuda.matmul.fp32_precision = was
        for one, its_run in zip(classes, before):
            one.run = its_run


def launch_of(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], target: str) -> KernelVariant:
    """What `kernel[grid](*args, **options)` compiles, as Triton decides it from the arguments."""
    values = dict(zip(kernel.arg_names, args)) | {name: options[name] for name in kernel.arg_names if name in options}
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    divisible, unaligned = [], []
    plain, constants, annotated = _not_specialized(kernel), _constants(kernel.fn), _annotated(kernel.fn)
    for name in kernel.arg_names:
        value = values[name]
        if name in constants or value is None:
            constexprs[name] = value
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            if value.data_ptr() % DIVISIBILITY:
                unaligned.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif not isinstance(value, int):  # a tensor descriptor
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif value == 1 and name not in plain and name not in annotated:
            constexprs[name] = 1
        else:
            signature[name] = annotated.get(name) or ("i32" if -(1 << 31) <= value < 1 << 31 else "i64")
            if value % DIVISIBILITY == 0 and name not in plain:
                divisible.append(name)
    return KernelVariant(
        "",
        kernel,
        signature,
        constexprs,
        num_warps=options.get("num_warps", 4),
        num_stages=options.get("num_stages", 2 if is_amd(target) else 3),  # Triton's own where the launch says nothing
        maxnreg=options.get("maxnreg"),
        unit=_unit(kernel, signature, constexprs),
        divisible=tuple(divisible),
        unaligned=tuple(unaligned),
        targets=(target,),
    )


@cache
def _constants(function: Any) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(parameter.name for parameter in parameters if "constexpr" in str(parameter.annotation))


@cache
def _annotated(function: Any) -> Mapping[str, str]:
    """Types of integers that a kernel's source states, such as {'stride': 'i64'}."""
    found = {name: str(one.annotation) for name, one in inspect.signature(function).parameters.items()}
    return {name: f"i{kind.rpartition('int')[2]}" for name, kind in found.items() if kind.endswith(("int32", "int64"))}


def _not_specialized(kernel: Any) -> frozenset[str]:
    """Names of the arguments whose values Triton does not compile for; the interpreter's function keeps them elsewhere."""
    names = kernel.kwargs.get("do_not_specialize") if hasattr(kernel, "kwargs") else kernel.do_not_specialize
    return frozenset(names or ())


def _unit(kernel: Any, signature: dict[str, str], constexprs: dict[str, Any]) -> Any:
    if "gemm" not in kernel.__name__:
        return "memory"
    is_exact = next(iter(signature.values())) == "*fp32" and constexprs["PRECISION"] == "ieee"
    return "scalar" if is_exact else "tensor"


Call = Callable[[], Any]


@dataclass(frozen=True)
class Point:
    """One way to call an operation. precision: as in `written_down`. of_bert: whether BERT-base or BERT-large calls it so.
    multiprocessors: of the device, those of the usual card where None."""

    call: Call
    precision: str = "ieee"
    of_bert: bool = False
    multiprocessors: int | None = None


def rows(points: Callable[[str], Iterable[Point]], targets: Sequence[str] = TARGETS) -> list[KernelVariant]:
    """The rows of the table for what points(target) launches on each target: every launch of BERT's own, and of the others so
    many that any two of their choices which can come together are together in a row (see `pairs`)."""
    merged: dict[Any, KernelVariant] = {}
    for target in targets:
        found: dict[Any, KernelVariant] = {}
        for point in points(target):
            with written_down(target, point.precision, point.multiprocessors) as launches:
                point.call()
            for launch in launches:
                key = identity(launch)
                if key not in found or (point.of_bert and not found[key].of_bert):
                    found[key] = replace(launch, of_bert=point.of_bert)
        for key, launch in _covering(found):
            known = merged.get(key, replace(launch, targets=()))
            merged[key] = replace(known, of_bert=known.of_bert or launch.of_bert, targets=(*known.targets, target))
    return _named(list(merged.values()))


def identity(variant: KernelVariant) -> tuple[Any, ...]:
    """What two variants share that compile to the same code on one target."""
    options = (variant.num_warps, variant.num_stages, variant.maxnreg)
    arguments = (tuple(sorted(variant.signature.items())), tuple(sorted(variant.constexprs.items(), key=lambda item: item[0])))
    return variant.kernel.__name__, *arguments, frozenset(variant.divisible), frozenset(variant.unaligned), *options


def pairs(variant: KernelVariant) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The choices that must come together in a row: any two of its tile (with warps and stages), its type of numbers, its
    flags, and whether types are mixed, a size is not whole vectors, an address is not aligned; then its type of numbers with
    the type and alignment of each argument."""
    blocks = {name: value for name, value in variant.constexprs.items() if "BLOCK" in name}
    types = [kind for kind in variant.signature.values() if not kind.startswith(("i", "*i"))]
    numbers = ("numbers", types[0])
    common: list[tuple[str, Any]] = [
        ("tile", (*blocks.items(), variant.num_warps, variant.num_stages, variant.maxnreg)),
        numbers,
    ]
    common += [(name, value) for name, value in variant.constexprs.items() if name.isupper() and name not in blocks]
    arguments: list[tuple[str, Any]] = [(name, None) for name in variant.constexprs if not name.isupper()]  # None, or 1
    odd = False
    for name, kind in variant.signature.items():
        is_odd = _is_odd(variant, name) if kind.startswith("i") else name in variant.unaligned
        odd |= is_odd and kind.startswith("i")
        arguments += [(name, kind), (f"{name} odd", is_odd)]
    common += [
        ("odd sizes", odd),
        ("unaligned", bool(variant.unaligned)),
        ("mixed", len({kind.strip("*") for kind in types}) > 1),
    ]
    return {*combinations(common, 2), *((numbers, argument) for argument in arguments)}


def _covering(found: dict[Any, KernelVariant]) -> Iterator[tuple[Any, KernelVariant]]:
    """BERT's own launches, and few others that together have every pair of choices: first those that add the most."""
    groups: dict[str, list[tuple[Any, set[Any]]]] = {}
    covered: dict[str, set[Any]] = {}
    for key, launch in found.items():
        if launch.of_bert:
            covered.setdefault(key[0], set()).update(pairs(launch))
            yield key, launch
        else:
            groups.setdefault(key[0], []).append((key, pairs(launch)))
    for kernel, candidates in groups.items():
        seen = covered.setdefault(kernel, set())
        while candidates:
            candidates = [(key, two - seen) for key, two in candidates]
            candidates = [(key, two) for key, two in candidates if two]
            most = max((len(two) for _, two in candidates), default=0)
            for key, two in candidates:
                if len(two - seen) >= max(most - 1, 1):
                    seen |= two
                    yield key, found[key]


def _named(variants: list[KernelVariant]) -> list[KernelVariant]:
    """Each with a name of its own: the kernel, types, flags, tile, and what else tells it from its namesakes."""
    names = [_name(variant) for variant in variants]
    groups: dict[str, list[KernelVariant]] = {}
    for name, variant in zip(names, variants):
        groups.setdefault(name, []).append(variant)
    return [
        replace(variant, name=name + _difference(variant, [one for one in groups[name] if {*one.targets} & {*variant.targets}]))
        for name, variant in zip(names, variants)
    ]


def _name(variant: KernelVariant) -> str:
    words = [variant.kernel.__name__.removesuffix("_kernel").strip("_").replace("_", " ")]
    words.append(next(kind for kind in variant.signature.values() if kind.startswith(("*fp", "*bf", "tensordesc"))).strip("*"))
    if variant.signature and words[-1].startswith("tensordesc"):
        words[-1] = words[-1][len("tensordesc<") :].split("[")[0]
    for name, value in variant.constexprs.items():
        if isinstance(value, bool):
            words += [name.lower()] * (value and name != "FULL")
        elif isinstance(value, str):
            words.append(value)
    blocks = [str(value) for name, value in variant.constexprs.items() if name.startswith("BLOCK")]
    words.append("x".join(blocks))
    odd = [name for name, kind in variant.signature.items() if kind == "i32" and _is_odd(variant, name)]
    words += [f"odd {','.join(odd)}"] * bool(odd) + ["unaligned"] * bool(variant.unaligned)
    return " ".join(words)


def _is_odd(variant: KernelVariant, name: str) -> bool:
    return name not in variant.divisible and name not in _not_specialized(variant.kernel)


def _difference(variant: KernelVariant, namesakes: list[KernelVariant]) -> str:
    """What the name leaves out, where others have the same one."""
    if len(namesakes) == 1:
        return ""

    everyone = [_facts(one) for one in namesakes]
    keys = dict.fromkeys(key for facts in everyone for key in facts)
    telling = [key for key in keys if len({str(facts.get(key)) for facts in everyone}) > 1]
    return "".join(f" {key}={_facts(variant)[key]}" for key in telling if key in _facts(variant))


def _facts(variant: KernelVariant) -> dict[str, Any]:
    """All that tells a variant from others of its kernel; types where they are not the first argument's."""
    first = next(iter(variant.signature.values()))
    facts = dict(variant.constexprs)
    facts |= {name.removesuffix("_ptr"): kind.strip("*") for name, kind in variant.signature.items() if kind != first}
    facts |= {f"{name} unaligned": True for name in variant.unaligned}
    return facts | {"warps": variant.num_warps, "stages": variant.num_stages, "registers": variant.maxnreg}


def draws(seed: int, each: Sequence[Sequence[Any]], repeats: int, **others: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Every combination of values of `each`, `repeats` times, then a dict of values of `others` drawn at random."""
    rng = random.Random(seed)
    for combination in product(*each):
        for _ in range(repeats):
            yield *combination, {name: rng.choice(list(values)) for name, values in others.items()}


def cut(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Zeros with rows 'contiguous', 'padded' by 3 elements, 'far' apart by whole vectors, or 'unaligned': a slice of them."""
    before, after = {"contiguous": (0, 0), "padded": (0, 3), "far": (0, -shape[-1] % 64 + 64), "unaligned": (3, 0)}[layout]
    wide = torch.zeros((*shape[:-1], before + shape[-1] + after), dtype=dtype)
    return wide[..., before : before + shape[-1]]
