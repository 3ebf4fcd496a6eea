"""Is the swap safe on this machine? The user's checkpoint and text through transformers and through fastbert.

Three models hold the same weights, rounded to the dtype under test: fastbert's and transformers' in that dtype, and
transformers' in float64 as the truth. Each row sets fastbert's largest difference from the truth beside that of PyTorch's
own rounding; fastbert may err at most twice as much, by the rule of `fastbert.kernels.specs.accuracy`, and three times for
gradients, which are sums over all tokens. Only real tokens count: at padding fastbert promises zeros, transformers nothing.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastbert.kernels.backend import interpreter_unsupported_reason
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.kernels.specs.accuracy import OUT_FACTOR, Accuracy, compare_with_float64
from fastbert.utils.checkpoints import CLASS_NAMES, Checkpoint, open_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.sample_text import read_texts

from .kernels import verify_kernels
from .models import Run, load_three_models, run_model, tokenize
from .rows import GRADIENT_FACTOR, Row, worst_of

NUM_CHOICES = 2
HEAD_TEXTS = 4  # every head runs the whole encoder three times


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

    path: folder or hub name of a BERT checkpoint. texts: sentences to run, None for the built-in ones. dtype, device:
    None for bfloat16 on a GPU where there is one, else float32 on the CPU. heads: every other head on this encoder too.
    kernels: each Triton kernel on this machine too, where Triton is installed, on `samples_per_operation` of its samples
    (None: all).
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


def verify_model(checkpoint: Checkpoint, texts: list[str], dtype: torch.dtype, device: torch.device) -> Iterator[Row]:
    """Weights, hidden states, outputs and gradients of a checkpoint in its own class, one row at a time."""
    models = load_three_models(checkpoint, checkpoint.class_name, dtype, device)
    yield Row("weights", "every parameter", models.weights, models.num_weights)
    batch = tokenize(checkpoint, texts, device)
    keep = batch["attention_mask"].bool()
    runs = [run_model(model, batch, {}, keep) for model in models]
    for name in runs[0].hidden:
        yield Row("hidden states", name, compare_with_float64(name, *(run.hidden[name] for run in runs), OUT_FACTOR), 1)
    for name in runs[0].outputs:
        yield Row("outputs", name, compare_with_float64(name, *(run.outputs[name] for run in runs), OUT_FACTOR), 1)
    groups: dict[str, list[Accuracy]] = {}
    for name in runs[0].gradients:
        groups.setdefault(_group(name), []).append(_compare_gradients(name, name, runs, keep))
    for group, accuracies in groups.items():
        yield Row("gradients", group, worst_of(accuracies), len(accuracies))


def verify_head(checkpoint: Checkpoint, texts: list[str], dtype: torch.dtype, device: torch.device, class_name: str) -> Row:
    """Outputs, loss and all gradients of one head on this checkpoint's encoder, as one row.

    Weights that the checkpoint lacks for the head are drawn once and shared by the three models.
    """
    models = load_three_models(checkpoint, class_name, dtype, device)
    batch = tokenize(checkpoint, texts, device)
    labels = _labels(class_name, batch, checkpoint.config)
    if class_name == "BertForMultipleChoice":
        batch = {name: torch.stack([tensor] * NUM_CHOICES, 1) for name, tensor in batch.items()}
    keep = batch["attention_mask"].bool()
    runs = [run_model(model, batch, labels, keep) for model in models]
    accuracies = [
        compare_with_float64(
            name, *(run.outputs[name] for run in runs), OUT_FACTOR, summed_rows=_terms(labels) if name == "loss" else 0
        )
        for name in runs[0].outputs
    ]
    accuracies += [_compare_gradients(f"gradient of {name}", name, runs, keep) for name in runs[0].gradients]
    return Row("heads", class_name, worst_of([models.weights, *accuracies]), len(accuracies))


def _compare_gradients(label: str, parameter: str, runs: list[Run], keep: Tensor) -> Accuracy:
    gradients = (run.gradients[parameter] for run in runs)
    return compare_with_float64(
        label, *gradients, GRADIENT_FACTOR, summed_rows=int(keep.sum()), scale=_scale(parameter, runs[2])
    )


def _scale(parameter: str, exact: Run) -> float:
    """The size of the summands of a key bias' gradient, 0 for every other parameter.

    Softmax ignores what all keys share, so the true gradient of a key bias is zero: its summands are as large as those of the
    key weight, and what remains of them is rounding.
    """
    if not parameter.endswith("key.bias"):
        return 0.0
    return exact.gradients[parameter.removesuffix("bias") + "weight"].abs().max().item()


def _terms(labels: dict[str, Tensor]) -> int:
    """How many terms a loss is the mean of: summed in another order, even one number may differ in its last bits."""
    return max((int((label != IGNORE_INDEX).sum()) for label in labels.values()), default=0)


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
