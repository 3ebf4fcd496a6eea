"""Is the swap safe on this machine? The user's checkpoint and text through transformers and through fastbert.

Three models hold the same weights, rounded to the dtype under test: fastbert's and transformers' in that dtype, and
transformers' in float64 as the truth. Each row sets fastbert's largest difference from the truth beside the difference
that PyTorch's own rounding makes; fastbert may err at most twice as much, by the rule of `fastbert.kernels.specs.accuracy`, and
three times for gradients, which are sums over all tokens. Only real tokens count: at padding fastbert promises zeros,
transformers nothing.
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

import fastbert
from fastbert.kernels.backend import interpreter_unsupported_reason
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.kernels.specs.accuracy import OUT_FACTOR, Accuracy, compare_with_float64
from fastbert.utils.checkpoints import CLASS_NAMES, Checkpoint, open_checkpoint, read_texts
from fastbert.utils.errors import InputError

GRADIENT_FACTOR = 3.0
NUM_CHOICES = 2
HEAD_TEXTS = 4  # every head runs the whole encoder again, three times


@dataclass(frozen=True)
class Row:
    """One line of the report. section: 'weights', 'hidden states', 'outputs', 'gradients', 'heads' or 'kernels'.
    where: layer, head or operation. worst: the accuracy furthest from its limit among `count` compared tensors."""

    section: str
    where: str
    worst: Accuracy
    count: int

    @property
    def passed(self) -> bool:
        return self.worst.passed


def worst_of(accuracies: list[Accuracy]) -> Accuracy:
    """The one that uses most of what it is allowed; a failed one before all others."""

    def used(accuracy: Accuracy) -> float:
        if not accuracy.passed:
            return float("inf")
        return accuracy.error / accuracy.allowed if accuracy.allowed else 0.0

    return max(accuracies, key=used)


def tokenize(checkpoint: Checkpoint, texts: list[str], device: torch.device) -> dict[str, Tensor]:
    """The texts as one padded batch. Raises InputError where the checkpoint has no tokenizer that belongs to it."""
    encoded = checkpoint.require_tokenizer()(
        texts, padding=True, truncation=True, max_length=checkpoint.config.max_position_embeddings, return_tensors="pt"
    )
    return {name: tensor.to(device) for name, tensor in encoded.items()}


def verify(
    path: str,
    *,
    texts: list[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    heads: bool = True,
    kernels: bool = True,
    samples_per_operation: int | None = 3,
) -> Iterator[Row]:
    """Compares fastbert with transformers on a checkpoint, row by row; safe to swap where every `row.passed`.

    path: folder or hub name of a BERT checkpoint. texts: sentences to run, the built-in ones where None. dtype, device:
    bfloat16 on a GPU where there is one, else float32 on the CPU. heads: every other head on this encoder too. kernels:
    each Triton kernel on this machine too, where Triton is installed, on `samples_per_operation` of its samples (None: all).
    Raises InputError where there is no checkpoint, one that is not BERT, one that lacks a weight or its tokenizer, and for
    versions of Triton and NumPy whose kernels cannot be checked on a CPU.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    checkpoint = open_checkpoint(path)
    checkpoint.require_tokenizer()
    texts = read_texts(None) if texts is None else texts
    kernels = kernels and importlib.util.find_spec("triton") is not None
    if kernels and device.type == "cpu":
        reason = interpreter_unsupported_reason()
        if reason is not None:
            raise InputError(f"the kernels cannot be checked on this CPU: {reason}, or leave them out (--no-kernels)")
    yield from verify_model(checkpoint, texts, dtype, device)
    if heads:
        for class_name in CLASS_NAMES:
            if class_name != checkpoint.class_name:
                yield verify_head(checkpoint, texts[:HEAD_TEXTS], dtype, device, class_name)
    if kernels:
        yield from verify_kernels(device, samples_per_operation)


def verify_model(
    checkpoint: Checkpoint, texts: list[str], dtype: torch.dtype, device: torch.device, class_name: str | None = None
) -> Iterator[Row]:
    """Hidden states, outputs and gradients of one class on one checkpoint, row by row as they are known."""
    models = _three_models(checkpoint, class_name or checkpoint.class_name, dtype, device)
    yield Row("weights", "every parameter", models.weights, models.num_weights)
    batch = tokenize(checkpoint, texts, device)
    keep = batch["attention_mask"].bool()
    runs = [_run(model, batch, {}, keep) for model in models]
    for name in runs[0].hidden:
        yield Row("hidden states", name, compare_with_float64(name, *(run.hidden[name] for run in runs), OUT_FACTOR), 1)
    for name in runs[0].outputs:
        yield Row("outputs", name, compare_with_float64(name, *(run.outputs[name] for run in runs), OUT_FACTOR), 1)
    groups: dict[str, list[Accuracy]] = {}
    for name in runs[0].gradients:
        gradients = (run.gradients[name] for run in runs)
        found = compare_with_float64(
            name, *gradients, GRADIENT_FACTOR, summed_rows=int(keep.sum()), scale=_scale(name, runs[2])
        )
        groups.setdefault(_group(name), []).append(found)
    for group, accuracies in groups.items():
        yield Row("gradients", group, worst_of(accuracies), len(accuracies))


def verify_head(checkpoint: Checkpoint, texts: list[str], dtype: torch.dtype, device: torch.device, class_name: str) -> Row:
    """Outputs, loss and all gradients of one head on this checkpoint's encoder, as one row.

    Weights that the checkpoint lacks for the head are drawn once and shared by the three models.
    """
    models = _three_models(checkpoint, class_name, dtype, device)
    batch = tokenize(checkpoint, texts, device)
    labels = _labels(class_name, batch, checkpoint.config)
    if class_name == "BertForMultipleChoice":
        batch = {name: torch.stack([tensor] * NUM_CHOICES, 1) for name, tensor in batch.items()}
    keep = batch["attention_mask"].bool()
    runs = [_run(model, batch, labels, keep) for model in models]
    accuracies = [
        compare_with_float64(
            name, *(run.outputs[name] for run in runs), OUT_FACTOR, summed_rows=_terms(labels) if name == "loss" else 0
        )
        for name in runs[0].outputs
    ]
    for name in runs[0].gradients:
        gradients = (run.gradients[name] for run in runs)
        found = compare_with_float64(
            f"gradient of {name}", *gradients, GRADIENT_FACTOR, summed_rows=int(keep.sum()), scale=_scale(name, runs[2])
        )
        accuracies.append(found)
    return Row("heads", class_name, worst_of([models.weights, *accuracies]), len(accuracies))


def verify_kernels(device: torch.device, samples_per_operation: int | None) -> Iterator[Row]:
    """Each Triton kernel against float64 on this machine: on its GPU, or under Triton's interpreter on the CPU.

    Runs in a process of its own, since Triton reads at import whether to interpret. samples_per_operation: None for all.
    Raises RuntimeError with the process's last words where it fails.
    """
    environment = dict(os.environ)
    if device.type == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "fastbert.verification.kernels", device.type, str(samples_per_operation or 0)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            found = json.loads(line)
            yield Row("kernels", found["where"], Accuracy(**found["worst"]), found["count"])
        last_words = process.stderr.read().strip()
    if process.returncode:
        raise RuntimeError(f"the kernel check ended with status {process.returncode}: {last_words[-2000:]}")


@dataclass(frozen=True)
class _Models:
    ours: Any
    same_dtype: Any
    exact: Any
    weights: Accuracy
    num_weights: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.ours, self.same_dtype, self.exact))


@dataclass(frozen=True)
class _Run:
    hidden: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


def _three_models(checkpoint: Checkpoint, class_name: str, dtype: torch.dtype, device: torch.device) -> _Models:
    transformers.utils.logging.set_verbosity_error()  # what is missing for a head is drawn below, for all three
    transformers.utils.logging.disable_progress_bar()
    config = copy.deepcopy(checkpoint.config)
    config.is_decoder = class_name == "BertLMHeadModel"
    config.use_cache = False
    torch.manual_seed(0)
    same_dtype = checkpoint.load(transformers, class_name, config=config, dtype=dtype)
    ours = checkpoint.load(fastbert, class_name, config=config, dtype=dtype)
    saved = _names_in_checkpoint(checkpoint, class_name)
    theirs_state, our_state = same_dtype.state_dict(), ours.state_dict()
    if list(theirs_state) != list(our_state):
        raise RuntimeError(f"{class_name}: expected transformers' state_dict keys, got {set(theirs_state) ^ set(our_state)}")
    difference = max(
        (theirs_state[name].double() - our_state[name].double()).abs().max().item() for name in theirs_state if name in saved
    )
    ours.load_state_dict(theirs_state)  # what the checkpoint lacks was drawn at random, once in each
    weights = Accuracy("weights", difference, 0.0, 0.0)
    exact = copy.deepcopy(same_dtype).double()
    return _Models(*(m.to(device).eval() for m in (ours, same_dtype, exact)), weights, len(saved))  # type: ignore[call-arg]


def _names_in_checkpoint(checkpoint: Checkpoint, class_name: str) -> set[str]:
    model, info = checkpoint.read(getattr(transformers, class_name))
    return set(model.state_dict()) - set(info["missing_keys"])


def _run(model: Any, batch: dict[str, Tensor], labels: dict[str, Tensor], keep: Tensor) -> _Run:
    """One forward and backward. The loss that is differentiated weighs every output at real tokens with fixed noise."""
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fastbert computes padding positions too")  # the row is about its numbers alone
        out = model(**batch, **labels, output_hidden_states=True)
    tensors = {name: value for name, value in out.items() if isinstance(value, Tensor)}
    outputs = {name: _at_real_tokens(value, keep) for name, value in tensors.items()}
    hidden = {
        "embeddings" if place == 0 else f"layer {place - 1}": _at_real_tokens(value, keep.flatten(0, -2)).detach()
        for place, value in enumerate(out.hidden_states)
    }
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=keep.device, dtype=next(iter(outputs.values())).dtype)
    for value in outputs.values():
        weights = torch.randn(value.shape, generator=generator).to(next(model.parameters()).dtype)
        total = total + (value * weights.to(value)).sum()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return _Run(hidden, {name: value.detach() for name, value in outputs.items()}, gradients)


def _at_real_tokens(value: Tensor, keep: Tensor) -> Tensor:
    """(batch, seqlen, ...) as (real tokens, ...); other shapes as they are."""
    return value[keep] if value.shape[: keep.dim()] == keep.shape else value


def _terms(labels: dict[str, Tensor]) -> int:
    """How many terms a loss is the mean of. It is one number, which PyTorch may meet exactly by the order it adds them in."""
    return max((int((label != IGNORE_INDEX).sum()) for label in labels.values()), default=0)


def _scale(parameter: str, exact: _Run) -> float:
    """Softmax ignores what all keys share, so the true gradient of a key bias is zero: its terms are as large as those of
    the key weight, and what is left of them is rounding."""
    if not parameter.endswith("key.bias"):
        return 0.0
    return exact.gradients[parameter.removesuffix("bias") + "weight"].abs().max().item()


def _group(parameter: str) -> str:
    parts = parameter.split(".")
    if "layer" in parts:
        return f"layer {parts[parts.index('layer') + 1]}"
    return next((part for part in parts if part in ("embeddings", "pooler")), parts[0])


def _labels(class_name: str, batch: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Plausible labels for the loss of each head, none on padding."""
    ids, keep = batch["input_ids"], batch["attention_mask"].bool()
    rows = torch.arange(ids.shape[0], device=ids.device)
    every_seventh = torch.arange(ids.shape[1], device=ids.device) % 7 == 1
    masked_lm = torch.where(keep & every_seventh, ids, IGNORE_INDEX)
    last = keep.sum(1) - 1
    makers: dict[str, Callable[[], dict[str, Tensor]]] = {
        "BertModel": dict,
        "BertForPreTraining": lambda: {"labels": masked_lm, "next_sentence_label": rows % 2},
        "BertForMaskedLM": lambda: {"labels": masked_lm},
        "BertLMHeadModel": lambda: {"labels": torch.where(keep, ids, IGNORE_INDEX)},
        "BertForNextSentencePrediction": lambda: {"labels": rows % 2},
        "BertForSequenceClassification": lambda: {"labels": rows % config.num_labels},
        "BertForMultipleChoice": lambda: {"labels": rows % NUM_CHOICES},
        "BertForTokenClassification": lambda: {"labels": torch.where(keep, ids % config.num_labels, IGNORE_INDEX)},
        "BertForQuestionAnswering": lambda: {"start_positions": last // 2, "end_positions": last},
    }
    return makers[class_name]()
