"""What the conformance tests share: every class beside transformers' own, tiny, with equal and telling weights.

B batch, C choices, S sequence, T real tokens. `reference` is transformers' model or output, `fast` is fastbert's.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastbert

TOLERANCE = 1e-5  # of the largest value compared, or of 1 where that is larger: the bound the project promises in float32
SIZES = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,  # head_dim 24
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BATCH, SEQLEN, CHOICES, NUM_LABELS = 5, 12, 3, 4
IGNORED = -100

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True)
class Head:
    """One class of both libraries: its name, what its config adds, which labels it takes and where it has token outputs."""

    name: str
    labels: Callable[["Batch"], dict[str, Tensor]] = lambda batch: {}
    config: dict[str, Any] = field(default_factory=dict)
    pooled: bool = False  # reads the first token of each sequence
    choices: bool = False
    case: str = ""

    def __str__(self) -> str:
        return self.name + self.case

    @property
    def fast(self) -> type:
        return getattr(fastbert, self.name)

    @property
    def reference(self) -> type:
        return getattr(transformers, self.name)


@dataclass(frozen=True)
class Batch:
    """Padded inputs and which of them are real. `mask` is None where the caller passes no attention_mask."""

    input_ids: Tensor  # (B, S), or (B, C, S) for multiple choice
    token_type_ids: Tensor
    mask: Tensor | None
    real: Tensor  # bool, same shape as input_ids

    def inputs(self, **changes: Any) -> dict[str, Any]:
        inputs = {"input_ids": self.input_ids, "token_type_ids": self.token_type_ids}
        if self.mask is not None:
            inputs["attention_mask"] = self.mask
        return inputs | changes

    def to(self, device: str) -> "Batch":
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.input_ids.to(device), self.token_type_ids.to(device), mask, self.real.to(device))

    @property
    def flat_real(self) -> Tensor:
        return self.real.flatten(0, -2)


def token_labels(batch: Batch, high: int, density: float = 0.5) -> Tensor:
    """Labels on about half of the real tokens, at least on one of them; -100 elsewhere."""
    chosen = (torch.rand(batch.real.shape) < density).to(batch.real.device) & batch.real
    if not chosen.any():
        chosen = batch.real
    return torch.where(chosen, torch.randint(0, high, batch.real.shape).to(batch.real.device), IGNORED)


def row_labels(batch: Batch, high: int) -> Tensor:
    return torch.randint(0, high, batch.real.shape[:1]).to(batch.real.device)


def span_labels(batch: Batch) -> dict[str, Tensor]:
    return {
        "start_positions": row_labels(batch, batch.real.shape[-1]),
        "end_positions": row_labels(batch, batch.real.shape[-1]),
    }


DECODER = {"is_decoder": True}
MODEL = Head("BertModel", pooled=True)
PRETRAINING = Head(
    "BertForPreTraining",
    lambda batch: {"labels": token_labels(batch, 120), "next_sentence_label": row_labels(batch, 2)},
    pooled=True,
)
MASKED_LM = Head("BertForMaskedLM", lambda batch: {"labels": token_labels(batch, 120)})
LM_HEAD = Head("BertLMHeadModel", lambda batch: {"labels": token_labels(batch, 120)})
LM_DECODER = replace(LM_HEAD, config=DECODER, case="[decoder]")
NEXT_SENTENCE = Head("BertForNextSentencePrediction", lambda batch: {"labels": row_labels(batch, 2)}, pooled=True)
SEQUENCE = Head(
    "BertForSequenceClassification",
    lambda batch: {"labels": row_labels(batch, NUM_LABELS)},
    {"num_labels": NUM_LABELS},
    pooled=True,
)
CHOICE = Head("BertForMultipleChoice", lambda batch: {"labels": row_labels(batch, CHOICES)}, pooled=True, choices=True)
TOKEN = Head(
    "BertForTokenClassification", lambda batch: {"labels": token_labels(batch, NUM_LABELS)}, {"num_labels": NUM_LABELS}
)
QUESTION = Head("BertForQuestionAnswering", span_labels)
HEADS = [MODEL, PRETRAINING, MASKED_LM, LM_HEAD, NEXT_SENTENCE, SEQUENCE, CHOICE, TOKEN, QUESTION]
HEADS_AND_DECODER = [*HEADS, LM_DECODER]


def config_for(head: Head = MODEL, **changes: Any) -> transformers.BertConfig:
    return transformers.BertConfig(**(SIZES | head.config | changes))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which a mistake shows: every parameter distinct, biases far from 0, norms' weights from 1, scores from 0.

    A fresh BERT has zero biases and attention that is nearly uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() < 2 or "embeddings" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[-1] ** 0.5)
    return model


def pair(head: Head = MODEL, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: Any):
    """(reference, fast): transformers' model and fastbert's with equal weights, in eval mode."""
    options = {key: changes.pop(key) for key in ("add_pooling_layer", "attn_implementation") if key in changes}
    config = config_for(head, **changes)
    if "attn_implementation" in options:
        config._attn_implementation = options.pop("attn_implementation")
    with quiet_transformers():
        reference = randomise(head.reference(copy.deepcopy(config), **options), seed)
        fast = head.fast(copy.deepcopy(config), **options)
    fast.load_state_dict(reference.state_dict())
    return reference.to(device, dtype).eval(), fast.to(device, dtype).eval()


def _rows(lengths: list[int], seqlen: int) -> Tensor:
    return torch.arange(seqlen)[None, :] < torch.tensor(lengths)[:, None]


def _holes() -> Tensor:
    real = torch.rand(BATCH, SEQLEN, generator=torch.Generator().manual_seed(7)) < 0.6
    real[:, 0] = True
    return real


def _first_token_masked() -> Tensor:
    real = _holes()
    real[2, :3] = False
    return real


# name: (real tokens (B, S), whether an attention_mask is passed)
PATTERNS: dict[str, tuple[Tensor, bool]] = {
    "no_mask": (_rows([SEQLEN] * BATCH, SEQLEN), False),
    "full": (_rows([SEQLEN] * BATCH, SEQLEN), True),
    "right": (_rows([7, 12, 1, 5, 10], SEQLEN), True),
    "left": (_rows([7, 12, 1, 5, 10], SEQLEN).flip(1), True),
    "holes": (_holes(), True),
    "first_token_masked": (_first_token_masked(), True),
    "empty_row": (_rows([7, 0, 12, 5, 0], SEQLEN), True),
    "all_empty": (_rows([0, 0], SEQLEN), True),
    "no_row_full": (_rows([3, 2, 4], SEQLEN), True),
    "one_row": (_rows([9], SEQLEN), True),
    "one_token": (_rows([1], 1), True),
    "one_token_no_mask": (_rows([1], 1), False),
    "one_real_token": (_rows([1], SEQLEN), True),
    "column": (_rows([1, 1, 1], 1), True),
    "longest": (_rows([64, 30], 64), True),
}
COMMON = ["no_mask", "right", "left", "holes", "empty_row"]


def make_batch(pattern: str = "right", head: Head = MODEL, seed: int = 0) -> Batch:
    """The inputs of one pattern. Real tokens may be id 0, the padding token; padding positions hold ids of their own."""
    real, masked = PATTERNS[pattern][0].clone(), PATTERNS[pattern][1]
    if head.choices:
        real = torch.stack([real.roll(choice, 0) for choice in range(CHOICES)], 1)
    return batch_of(real, masked=masked, seed=seed)


def batch_of(real: Tensor, *, masked: bool = True, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, SIZES["vocab_size"], real.shape, generator=generator)
    input_ids[torch.rand(real.shape, generator=generator) < 0.1] = 0
    token_type_ids = torch.randint(0, 2, real.shape, generator=generator)
    return Batch(input_ids, token_type_ids, real.to(torch.int64) if masked else None, real)


def labels_for(head: Head, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return head.labels(batch)


def assert_close(name: str, fast: Tensor, reference: Tensor, tolerance: float = TOLERANCE, scale: float | None = None) -> None:
    """Equal dtype and shape; NaN at the same places; the largest difference within tolerance * scale.

    scale: the largest value compared, or 1 where that is larger, if None.
    """
    assert isinstance(fast, Tensor), f"{name}: expected a tensor, got {type(fast).__name__}"
    assert fast.dtype == reference.dtype, f"{name}: expected {reference.dtype}, got {fast.dtype}"
    assert fast.shape == reference.shape, f"{name}: expected shape {tuple(reference.shape)}, got {tuple(fast.shape)}"
    assert fast.device == reference.device, f"{name}: expected device {reference.device}, got {fast.device}"
    if fast.numel() == 0:
        return
    fast, reference = fast.detach().double(), reference.detach().double()
    assert torch.equal(fast.isnan(), reference.isnan()), f"{name}: NaN at other places than in transformers"
    fast, reference = fast.nan_to_num(0.0), reference.nan_to_num(0.0)
    error = (fast - reference).abs().max().item()
    bound = tolerance * (max(1.0, reference.abs().max().item()) if scale is None else scale)
    assert error <= bound, f"{name}: largest difference {error:.3g}, allowed {bound:.3g}"


def at_real_tokens(value: Tensor, real: Tensor) -> Tensor:
    """The rows (B, S, …) or queries (B, heads, S, S) of value that belong to real tokens; others unchanged."""
    if value.shape[:2] == real.shape:
        return value[real]
    if value.dim() == 4 and value.shape[0] == real.shape[0] and value.shape[2] == real.shape[1]:
        return value.transpose(1, 2)[real]
    return value


def assert_padding_is_below(logits: Tensor, real: Tensor) -> None:
    """Logits over positions, (B, S): finite everywhere, at padding below every real one of their row by at least 30."""
    assert logits.isfinite().all()
    assert logits.abs().max() < 1e3, "so far away that a loss over all positions would see nothing else"
    for row, kept in zip(logits.float(), real):
        if kept.any() and not kept.all():
            assert row[~kept].max() < row[kept].min() - 30


def assert_same_outputs(fast: Any, reference: Any, real: Tensor | None, tolerance: float = TOLERANCE) -> None:
    """Same type, same keys in the same order, same values: at real tokens where `real` (B, S) is given, else everywhere."""
    assert type(fast) is type(reference)
    if isinstance(reference, tuple):
        fields = [(str(index), a, b) for index, (a, b) in enumerate(zip(fast, reference))]
        assert len(fast) == len(reference), f"expected {len(reference)} outputs, got {len(fast)}"
    else:
        assert list(fast.keys()) == list(reference.keys())
        fields = [(key, fast[key], reference[key]) for key in reference.keys()]
    for key, value, expected in fields:
        assert_same_value(key, value, expected, real, tolerance)


def assert_same_value(name: str, fast: Any, reference: Any, real: Tensor | None, tolerance: float = TOLERANCE) -> None:
    if isinstance(reference, Tensor):
        if real is not None:
            assert fast.shape == reference.shape, f"{name}: expected shape {tuple(reference.shape)}, got {tuple(fast.shape)}"
            fast, reference = at_real_tokens(fast, real), at_real_tokens(reference, real)
        assert_close(name, fast, reference, tolerance)
    elif isinstance(reference, tuple):
        assert isinstance(fast, tuple), f"{name}: expected a tuple, got {type(fast).__name__}"
        assert len(fast) == len(reference), f"{name}: expected {len(reference)} entries, got {len(fast)}"
        for index, (a, b) in enumerate(zip(fast, reference)):
            assert_same_value(f"{name}[{index}]", a, b, real, tolerance)
    elif isinstance(reference, transformers.Cache):
        assert type(fast) is type(reference)
        assert fast.get_seq_length() == reference.get_seq_length()
        for index, (a, b) in enumerate(zip(cached_states(fast), cached_states(reference))):
            assert_close(f"{name}[{index}]", a, b, tolerance)
    else:
        assert fast == reference, f"{name}: expected {reference!r}, got {fast!r}"


def cached_states(cache: Any) -> list[Tensor]:
    halves = (
        [cache.self_attention_cache, cache.cross_attention_cache]
        if isinstance(cache, transformers.EncoderDecoderCache)
        else [cache]
    )
    return [state for half in halves for layer in half.layers if layer.keys is not None for state in (layer.keys, layer.values)]


def projection(outputs: Any, real: Tensor) -> Tensor:
    """A scalar that reads every output that matters with a weight of its own, so that no gradient can hide."""
    generator = torch.Generator().manual_seed(11)
    total = torch.zeros((), dtype=torch.float64, device=real.device)
    for value in outputs.values() if hasattr(outputs, "values") else outputs:
        if isinstance(value, Tensor) and value.is_floating_point():
            weights = torch.randn(value.shape, generator=generator).to(value.device)
            total = total + (at_real_tokens(value, real).double() * at_real_tokens(weights, real)).sum()
    return total


def gradients(model: nn.Module, scalar: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    scalar.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(
    fast: dict[str, Tensor | None],
    reference: dict[str, Tensor | None],
    tolerance: float = TOLERANCE,
    *,
    may_vanish: bool = False,
) -> None:
    """Every gradient there or None alike, and within tolerance of the largest gradient of the model.

    The scale is the model's, since the gradients of queries and keys are small differences of large numbers. may_vanish:
    all may be 0, as for a batch without tokens, and then None counts as 0.
    """
    assert fast.keys() == reference.keys()
    largest = max(0.0 if gradient is None else gradient.abs().max().item() for gradient in reference.values())
    assert may_vanish or largest > 1e-6, "every gradient is 0: nothing is compared"
    for name, expected in reference.items():
        gradient = fast[name]
        if expected is None:
            assert gradient is None, f"{name}: transformers leaves the gradient None"
            continue
        if gradient is None:
            assert may_vanish, f"{name}: no gradient"
            gradient = torch.zeros_like(expected)
        assert_close(f"gradient of {name}", gradient, expected, tolerance, scale=max(1.0, largest))


def assert_same_run(
    head: Head,
    reference: nn.Module,
    fast: nn.Module,
    inputs: dict[str, Any],
    real: Tensor,
    *,
    everywhere: bool = False,
    backward: bool = True,
    tolerance: float = TOLERANCE,
) -> Any:
    """One forward of both, outputs compared, then the gradient of every parameter; returns our outputs."""
    expected, actual = reference(**inputs), fast(**inputs)
    assert_same_outputs(actual, expected, None if everywhere else real, tolerance)
    if backward:
        scalars = [out.loss if out.get("loss") is not None else projection(out, real) for out in (actual, expected)]
        if scalars[1].requires_grad and scalars[1].isfinite():
            may_vanish = not real.any() or real.shape[-1] == 1  # nothing to attend to; a softmax over one position
            grads = (gradients(fast, scalars[0]), gradients(reference, scalars[1]))
            assert_same_gradients(*grads, tolerance, may_vanish=may_vanish)
    return actual


class RecordingHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def recorded_log(name: str = "transformers") -> Iterator[list[str]]:
    """What the library logs at warning level and above, as a list of messages."""
    logger, handler = logging.getLogger(name), RecordingHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the advice that BertLMHeadModel logs for an encoder's config."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def snapshot(model: nn.Module) -> dict:
    """All that accelerate might touch: classes, attributes by identity, parameters by identity, hooks."""
    return {
        name: (type(module), {key: id(value) for key, value in vars(module).items() if not isinstance(value, (bool, int))})
        for name, module in model.named_modules()
    } | {f"parameter {name}": id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
