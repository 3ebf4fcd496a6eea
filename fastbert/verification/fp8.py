"""What fp8 costs a checkpoint on the user's own text: `fastbert verify --dtype fp8`.

The model is quantised with one half of the texts and compared, on the other half, with itself before.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastbert
from fastbert.deploy.fp8_layer import PRODUCTS
from fastbert.model.bert import berts
from fastbert.utils.checkpoints import Checkpoint, quiet
from fastbert.utils.errors import InputError

from .models import tokenize

BATCH_TEXTS = 32
MASKED_SHARE = 0.15  # of the tokens, for the agreement of a masked-language model
MEAN_COSINE, WORST_COSINE, AGREEMENT = 0.999, 0.995, 0.98
MEANS = "mean state of each text"
# The outputs whose largest entry is compared, and how the report calls it.
TOP = {
    "prediction_logits": "likeliest token of each mask",
    "logits": "likeliest class",
    "start_logits": "likeliest start",
    "end_logits": "likeliest end",
}
TOP_OF_TOKENS = {"BertForMaskedLM": TOP["prediction_logits"], "BertLMHeadModel": "likeliest next token"}


@dataclass(frozen=True)
class Finding:
    """The mean and the worst of `count` comparisons, and their lower limits where there are any."""

    what: str
    count: int
    mean: float
    worst: float | None = None
    least_mean: float | None = None
    least_worst: float | None = None

    @property
    def passed(self) -> bool:
        limits = ((self.mean, self.least_mean), (self.worst, self.least_worst))
        return all(least is None or (value is not None and value >= least) for value, least in limits)


@dataclass(frozen=True)
class QuantizationReport:
    """How far the quantised model is from the original, and how much of it is in fp8.

    quantized: matrix products in fp8, of `products`. share: of the products' arithmetic. kept: the products that are not in
    fp8, each with the reason.
    """

    findings: tuple[Finding, ...]
    quantized: int
    products: int
    share: float
    kept: dict[str, str]

    @property
    def passed(self) -> bool:
        return self.quantized > 0 and all(finding.passed for finding in self.findings)


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(texts to calibrate with, texts to measure on): every other one. Raises InputError for fewer than two."""
    if len(texts) < 2:
        raise InputError(f"expected at least two texts, one to calibrate with and one to measure on, got {len(texts)}")
    return list(texts[::2]), list(texts[1::2])


def measure(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    calibration: Sequence[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    cosine: float | None = MEAN_COSINE,
) -> QuantizationReport:
    """Quantises the checkpoint's own class with `calibration` and compares it on `texts` with the model before.

    A multiple-choice checkpoint, whose rows are not single texts, is measured by its encoder alone.
    dtype: of everything that is not in fp8. cosine: as in `quantize`; None puts every product into fp8.
    Raises InputError for a checkpoint without a tokenizer, RuntimeError for a device without fp8.
    """
    config = copy.deepcopy(checkpoint.config)
    config.use_cache = False  # a decoder with a cache runs on its original weights
    class_name = "BertModel" if checkpoint.class_name == "BertForMultipleChoice" else None
    with quiet():
        model = checkpoint.load(fastbert, class_name, config=config, dtype=dtype).to(device)
    batches = list(_batches(checkpoint, texts, device))
    before = [_run(model, batch) for batch in batches]
    fastbert.quantize(model, (batch.inputs for batch in _batches(checkpoint, calibration, device)), cosine=cosine)
    after = [_run(model, batch) for batch in batches]

    findings = []
    for index in range(len(before[0].states)):
        cosines = torch.cat([_cosines(a.states[index], b.states[index]) for a, b in zip(after, before)])
        name = "embeddings" if index == 0 else f"layer {index - 1}"
        findings.append(Finding(f"state of each token, {name}", cosines.numel(), *_mean_and_worst(cosines)))
    cosines = torch.cat([_cosines(a.means, b.means) for a, b in zip(after, before)])
    findings.append(Finding(MEANS, cosines.numel(), *_mean_and_worst(cosines), MEAN_COSINE, WORST_COSINE))
    for name in before[0].best:
        same = torch.cat([a.best[name] == b.best[name] for a, b in zip(after, before)]).double()
        if same.numel():
            what = TOP_OF_TOKENS.get(checkpoint.class_name, TOP[name])
            findings.append(Finding(what, same.numel(), same.mean().item(), least_mean=AGREEMENT))
    return QuantizationReport(tuple(findings), *_products_in_fp8(model))


@dataclass(frozen=True)
class _Run:
    """states: of every real token, (tokens, D) per layer. means: (texts, D). best: index of the largest of each output."""

    states: list[Tensor]
    means: Tensor
    best: dict[str, Tensor]


@dataclass(frozen=True)
class _Batch:
    """inputs: the model's arguments. masked: bool (B, S), tokens replaced by [MASK]; none unless the class predicts masks."""

    inputs: dict[str, Tensor]
    masked: Tensor


@torch.no_grad()
def _run(model: Any, batch: _Batch) -> _Run:
    out = model(**batch.inputs, output_hidden_states=True)
    keep, masked = batch.inputs["attention_mask"].bool(), batch.masked  # (B, S)
    states = [state[keep].float().cpu() for state in out.hidden_states]  # (tokens, D)
    lengths = keep.sum(1).tolist()
    means = torch.stack([text.mean(0) for text in states[-1].split(lengths)])
    best = {}
    for name in TOP:
        value = out.get(name)
        if value is None:
            continue
        if name in ("start_logits", "end_logits"):
            best[name] = value.argmax(-1)
        elif value.dim() == 3:
            best[name] = value[masked if masked.any() else keep].argmax(-1)
        elif value.shape[-1] > 1:
            best[name] = value.argmax(-1)
    return _Run(states, means, {name: value.cpu() for name, value in best.items()})


def _batches(checkpoint: Checkpoint, texts: Sequence[str], device: torch.device) -> Iterator[_Batch]:
    """Padded batches of texts of similar length; where the model predicts masked tokens, some are masked."""
    by_length = sorted(texts, key=len)
    generator = torch.Generator().manual_seed(0)
    predicts_masks = checkpoint.class_name in ("BertForMaskedLM", "BertForPreTraining")
    for start in range(0, len(by_length), BATCH_TEXTS):
        batch = tokenize(checkpoint, by_length[start : start + BATCH_TEXTS], torch.device("cpu"))
        masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        tokenizer: Any = checkpoint.tokenizer
        if predicts_masks and tokenizer.mask_token_id is not None:
            special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
            masked = (torch.rand(masked.shape, generator=generator) < MASKED_SHARE) & ~special
            batch["input_ids"] = batch["input_ids"].masked_fill(masked, tokenizer.mask_token_id)
        yield _Batch({name: tensor.to(device) for name, tensor in batch.items()}, masked.to(device))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=-1)


def _mean_and_worst(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.min().item()


def _products_in_fp8(model: Any) -> tuple[int, int, float, dict[str, str]]:
    """(products in fp8, all products, share of the arithmetic in fp8, the other products with their reasons)."""
    kept: dict[str, str] = {}
    quantized = total = 0
    for bert in berts(model):
        for index, layer in enumerate(bert.encoder.layer):
            sizes = {
                "qkv": 3 * layer.attention.self.query.weight.numel(),
                "attention": layer.attention.output.dense.weight.numel(),
                "intermediate": layer.intermediate.dense.weight.numel(),
                "output": layer.output.dense.weight.numel(),
            }
            total += sum(sizes.values())
            quantized += sum(sizes[name] for name in layer.fp8)
            kept |= {f"{index}.{name}": why for name, why in layer.fp8_kept.items()}
    products = sum(len(bert.encoder.layer) for bert in berts(model)) * len(PRODUCTS)
    return products - len(kept), products, quantized / total, kept
