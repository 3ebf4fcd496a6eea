"""What fp8 does to a checkpoint on the user's own text: `fastbert verify --dtype fp8`.

The model is quantised with one half of the texts and measured on the other, against itself before.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastbert
from fastbert.deploy.fp8 import PRODUCTS
from fastbert.model.bert import berts
from fastbert.utils.checkpoints import Checkpoint, quiet
from fastbert.utils.errors import InputError
from fastbert.verification.compare import tokenize

BATCH = 32  # texts
MASKED = 0.15  # of the tokens, for the agreement of a masked-language model
MEAN_COSINE, WORST_COSINE, AGREEMENT = 0.999, 0.995, 0.98
MEANS = "mean state of each text"
TOP = {
    "prediction_logits": "likeliest token of each mask",
    "logits": "likeliest class",
    "start_logits": "likeliest start",
    "end_logits": "likeliest end",
}
OF_TOKENS = {"BertForMaskedLM": TOP["prediction_logits"], "BertLMHeadModel": "likeliest next token"}


@dataclass(frozen=True)
class Finding:
    """One measure: the mean and the worst of `count` comparisons, and the least they may be, where there is such a limit."""

    what: str
    count: int
    mean: float
    worst: float | None = None
    least_mean: float | None = None
    least_worst: float | None = None

    @property
    def passed(self) -> bool:
        held = ((self.mean, self.least_mean), (self.worst, self.least_worst))
        return all(least is None or (value is not None and value >= least) for value, least in held)


@dataclass(frozen=True)
class Damage:
    """findings, and what ended up in fp8: of `products`, and share of their arithmetic; kept: the others and why."""

    findings: tuple[Finding, ...]
    quantized: int
    products: int
    share: float
    kept: dict[str, str]

    @property
    def passed(self) -> bool:
        return self.quantized > 0 and all(finding.passed for finding in self.findings)


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(every other text, the rest): to calibrate with and to measure on. Raises InputError where there are fewer than two."""
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
) -> Damage:
    """Quantises the checkpoint's own class with `calibration` and compares it with itself before on `texts`.

    Of a multiple-choice checkpoint, whose rows are not single texts, the encoder alone.

    dtype: of everything that is not in fp8. cosine: as of `quantize`; None puts every product into fp8.
    Raises InputError for a checkpoint without a tokenizer, RuntimeError for a device without fp8.
    """
    config = copy.deepcopy(checkpoint.config)
    config.use_cache = False  # a decoder with a cache runs on its original weights
    encoder_alone = "BertModel" if checkpoint.class_name == "BertForMultipleChoice" else None
    with quiet():
        model = checkpoint.load(fastbert, encoder_alone, config=config, dtype=dtype).to(device)
    batches = list(_batches(checkpoint, texts, device))
    before = [_run(model, batch) for batch in batches]
    fastbert.quantize(model, (batch.inputs for batch in _batches(checkpoint, calibration, device)), cosine=cosine)
    after = [_run(model, batch) for batch in batches]

    findings = []
    for place in range(len(before[0].states)):
        cosines = torch.cat([_cosines(a.states[place], b.states[place]) for a, b in zip(after, before)])
        name = "embeddings" if place == 0 else f"layer {place - 1}"
        findings.append(Finding(f"state of each token, {name}", cosines.numel(), *_mean_and_worst(cosines)))
    cosines = torch.cat([_cosines(a.means, b.means) for a, b in zip(after, before)])
    findings.append(Finding(MEANS, cosines.numel(), *_mean_and_worst(cosines), MEAN_COSINE, WORST_COSINE))
    for name in before[0].best:
        same = torch.cat([a.best[name] == b.best[name] for a, b in zip(after, before)]).double()
        if same.numel():
            findings.append(
                Finding(OF_TOKENS.get(checkpoint.class_name, TOP[name]), same.numel(), same.mean().item(), least_mean=AGREEMENT)
            )
    return Damage(tuple(findings), *_what_is_in_fp8(model))


@dataclass(frozen=True)
class _Run:
    """states: of every token, per layer, (tokens, D). means: (texts, D). best: index of the largest of each output."""

    states: list[Tensor]
    means: Tensor
    best: dict[str, Tensor]


@dataclass(frozen=True)
class _Batch:
    """inputs: as the model takes them. masked: bool (B, S), the tokens behind a mask, none where nothing is predicted there."""

    inputs: dict[str, Tensor]
    masked: Tensor


@torch.no_grad()
def _run(model: Any, batch: _Batch) -> _Run:
    out = model(**batch.inputs, output_hidden_states=True)
    keep, masked = batch.inputs["attention_mask"].bool(), batch.masked
    states = [state[keep].float().cpu() for state in out.hidden_states]
    lengths = keep.sum(1).tolist()
    means = torch.stack([one.mean(0) for one in states[-1].split(lengths)])
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
    """Padded batches of texts of like length; where the model predicts masked tokens, some are masked."""
    ordered = sorted(texts, key=len)
    generator = torch.Generator().manual_seed(0)
    masks = checkpoint.class_name in ("BertForMaskedLM", "BertForPreTraining")
    for start in range(0, len(ordered), BATCH):
        batch = tokenize(checkpoint, ordered[start : start + BATCH], torch.device("cpu"))
        masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        tokenizer: Any = checkpoint.tokenizer
        if masks and tokenizer.mask_token_id is not None:
            special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
            masked = (torch.rand(masked.shape, generator=generator) < MASKED) & ~special
            batch["input_ids"] = batch["input_ids"].masked_fill(masked, tokenizer.mask_token_id)
        yield _Batch({name: tensor.to(device) for name, tensor in batch.items()}, masked.to(device))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=-1)


def _mean_and_worst(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.min().item()


def _what_is_in_fp8(model: Any) -> tuple[int, int, float, dict[str, str]]:
    """(products in fp8, all of them, share of the arithmetic, the others with their reasons)."""
    kept: dict[str, str] = {}
    done = total = 0
    for bert in berts(model):
        for place, layer in enumerate(bert.encoder.layer):
            sizes = {
                "qkv": 3 * layer.attention.self.query.weight.numel(),
                "attention": layer.attention.output.dense.weight.numel(),
                "intermediate": layer.intermediate.dense.weight.numel(),
                "output": layer.output.dense.weight.numel(),
            }
            total += sum(sizes.values())
            done += sum(sizes[name] for name in layer.fp8)
            kept |= {f"{place}.{name}": why for name, why in layer.fp8_kept.items()}
    products = sum(len(bert.encoder.layer) for bert in berts(model)) * len(PRODUCTS)
    return products - len(kept), products, done / total, kept


def show(damage: Damage, about: dict[str, Any], console: Console) -> None:
    """Prints a table, what is in fp8, and the verdict."""
    console.print(
        f"[bold]{about['checkpoint']}[/]\n{about['class']}, {about['texts']} texts, calibrated with "
        f"{about['calibration texts']} others; {about['dtype']} where it is not fp8, on {about['device']}\n\n"
        "Each row: the model in fp8 beside itself before. 1 means no difference.\n",
        highlight=False,
    )
    table = Table()
    for name in ("", "compared", "mean", "at least", "worst", "at least", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for found in damage.findings:
        numbers = [
            "" if value is None else f"{value:.5f}" if digits else f"{value:g}"
            for value, digits in ((found.mean, 5), (found.least_mean, 0), (found.worst, 5), (found.least_worst, 0))
        ]
        limited = found.least_mean is not None
        mark = ("[green]✓[/]" if found.passed else "[red]✗[/]") if limited else ""
        table.add_row(found.what, f"{found.count:,}", *numbers, mark)
    console.print(table)
    console.print(
        f"in fp8: {damage.quantized} of {damage.products} products, {damage.share:.0%} of their arithmetic", highlight=False
    )
    for name, why in damage.kept.items():
        console.print(f"  not {name}: {why}", highlight=False, markup=False)
    if damage.passed:
        console.print("[bold green]WITHIN THE LIMITS[/] on this text")
    else:
        console.print("[bold red]OUTSIDE THE LIMITS[/] on this text")


def as_dict(damage: Damage, about: dict[str, Any]) -> dict[str, Any]:
    findings = [asdict(found) | {"passed": found.passed} for found in damage.findings]
    return about | {
        "passed": damage.passed, "findings": findings, "products in fp8": damage.quantized, "products": damage.products,
        "share of the arithmetic": damage.share, "kept": damage.kept,
    }  # fmt: skip
