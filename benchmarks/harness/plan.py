"""The cases of each size of run.

'check': everything runs once, nothing is timed. 'quick': a CPU, some minutes. 'default': a GPU, some minutes, the headline
rows. 'full': a GPU, hours, for records.
"""

from dataclasses import dataclass, replace
from typing import Literal

Axis = Literal["batch_size", "seqlen", "num_layers"]
Size = Literal["check", "quick", "default", "full"]
ROUNDS: dict[Size, int] = {"check": 1, "quick": 7, "default": 20, "full": 50}
VOCAB_SIZE = 30522


@dataclass(frozen=True)
class KernelCase:
    """An operation on one batch of `tokens` tokens whose lengths follow a mix. modes: as in InferenceCase."""

    model: str
    tokens: int
    seqlen: int
    lengths: str
    dtype: str
    direction: Literal["forward", "backward", "both"]
    modes: tuple[str, ...] = ("default",)

    @property
    def id(self) -> str:
        return f"{self.model}-{self.tokens}-{self.lengths}{self.seqlen}-{self.dtype}-{self.direction}"


@dataclass(frozen=True)
class InferenceCase:
    """batch_size sequences of at most seqlen tokens. modes: torch.compile's that take part, 'default' and 'max-autotune'."""

    model: str
    batch_size: int
    seqlen: int
    lengths: str
    dtype: str
    modes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.model}-{self.batch_size}x{self.lengths}{self.seqlen}-{self.dtype}"


@dataclass(frozen=True)
class TrainingCase:
    """A pre-training step. micro_batches: sizes each contender chooses from. precision: as in peers.training.Pretraining."""

    model: str
    micro_batches: tuple[int, ...]
    seqlen: int
    lengths: str
    precision: str
    modes: tuple[str, ...] = ("default",)

    @property
    def id(self) -> str:
        return f"{self.model}-{self.lengths}{self.seqlen}-{self.precision}"


def kernel_cases(size: Size) -> list[KernelCase]:
    if size in ("check", "quick"):
        modes = () if size == "check" else ("default",)
        return [KernelCase("tiny", 512, 128, "normal", "float32", direction, modes) for direction in ("forward", "both")]
    if size == "default":
        mixes = (("fixed", 512), ("normal", 512))
        return [
            KernelCase("bert-base", 32768, seqlen, lengths, "bfloat16", direction)
            for lengths, seqlen in mixes
            for direction in ("forward", "both")
        ]
    mixes = (("fixed", 128), ("fixed", 512), ("normal", 512), ("wiki-qa", 384), ("books", 128))
    return [
        KernelCase(model, tokens, seqlen, lengths, dtype, direction, ("default", "max-autotune"))
        for model in ("bert-base", "bert-large")
        for tokens in (8192, 32768, 65536, 131072)
        for lengths, seqlen in mixes
        for dtype in ("bfloat16", "float16")
        for direction in ("forward", "backward", "both")
    ]


def inference_cases(size: Size) -> list[InferenceCase]:
    if size == "check":
        return [
            InferenceCase("tiny", 3, 16, "fixed", "float32", ("default",)),
            InferenceCase("tiny", 4, 32, "books", "float32"),
        ]
    if size == "quick":
        model = "bert-base, 2 layers"
        fixed = [InferenceCase(model, b, s, "fixed", "float32") for b, s in ((1, 16), (1, 128), (8, 16), (8, 128), (8, 256))]
        ragged = [
            InferenceCase(model, 32, 128, "books", "float32", ("default",)),
            InferenceCase(model, 8, 384, "wiki-qa", "float32"),
        ]
        return [*fixed, *ragged]
    if size == "default":
        both = ("default", "max-autotune")
        base = [
            InferenceCase("bert-base", 1, 128, "fixed", "bfloat16"),
            InferenceCase("bert-base", 8, 128, "fixed", "bfloat16"),
            InferenceCase("bert-base", 256, 128, "fixed", "bfloat16", ("default",)),
            InferenceCase("bert-base", 64, 512, "normal", "bfloat16", both),
            InferenceCase("bert-base", 64, 384, "wiki-qa", "bfloat16"),
            InferenceCase("bert-base", 256, 128, "books", "bfloat16"),
        ]
        large = [("fixed", 64, 512), ("normal", 64, 512)]
        return [*base, *(InferenceCase("bert-large", b, s, m, "bfloat16", ("default",)) for m, b, s in large)]
    shapes = [("fixed", b, s) for b in (1, 8, 32, 256) for s in (16, 128, 384, 512)]
    shapes += [(m, b, s) for m, s in (("normal", 512), ("wiki-qa", 384), ("books", 128), ("snli", 128)) for b in (8, 32, 256)]
    return [
        InferenceCase(model, b, s, mix, dtype, ("default", "max-autotune"))
        for model in ("bert-base", "bert-large")
        for dtype in ("bfloat16", "float16")
        for mix, b, s in shapes
    ]


def training_cases(size: Size) -> list[TrainingCase]:
    if size == "check":
        return [TrainingCase("tiny", (2,), 32, "snli", "float32", ())]
    if size == "quick":
        ragged = TrainingCase("tiny", (4, 8), 128, "snli", "float32")
        return [ragged, replace(ragged, lengths="fixed", modes=())]
    if size == "default":
        return [
            TrainingCase("bert-base", (64, 128), 512, "normal", "bf16"),
            TrainingCase("bert-large", (32, 64), 512, "normal", "bf16"),
            TrainingCase("bert-base", (128, 256), 128, "fixed", "bf16"),
        ]
    sweep = (8, 16, 32, 64, 128, 256, 512)
    shapes = (("fixed", 128), ("fixed", 512), ("normal", 512), ("wiki-qa", 384), ("books", 128))
    return [
        TrainingCase(model, sweep, seqlen, mix, precision, ("default", "max-autotune"))
        for model in ("bert-base", "bert-large")
        for precision in ("bf16", "autocast")
        for mix, seqlen in shapes
    ]


@dataclass(frozen=True)
class ScalingCase:
    """One step of a series in which `axis` grows and nothing else does."""

    axis: Axis
    value: int
    batch_size: int
    seqlen: int
    num_layers: int
    training: bool

    @property
    def id(self) -> str:
        return f"{'training' if self.training else 'inference'}-{self.axis}-{self.value}"


def scaling_cases(size: Size) -> list[ScalingCase]:
    base = {"check": (2, 32, 1), "quick": (4, 128, 2), "default": (16, 256, 4), "full": (16, 256, 4)}[size]
    factors = {"check": (2,), "quick": (1, 2, 4), "default": (1, 2, 4), "full": (1, 2, 4, 8)}[size]
    axes: tuple[Axis, ...] = ("batch_size", "seqlen", "num_layers")
    cases = []
    for training in (False, True):
        for axis in axes:
            for factor in factors[:2] if training and size == "quick" else factors:
                sizes = dict(zip(axes, base))
                sizes[axis] *= factor
                if sizes["seqlen"] <= 512:  # BERT's limit
                    cases.append(ScalingCase(axis, sizes[axis], *sizes.values(), training))
    return cases
