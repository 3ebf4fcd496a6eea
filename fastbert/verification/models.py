"""The three models of a comparison, with the same weights, and one forward and backward of any of them."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

import fastbert
from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.model.construction import transformers_classes
from fastbert.utils.checkpoints import Checkpoint


@dataclass(frozen=True)
class ThreeModels:
    """One class by fastbert (`swapped`) and by transformers in the dtype under test, and by transformers in float64.

    weights: the largest difference, as loaded, between fastbert's and transformers' `num_weights` parameters and buffers.
    """

    swapped: Any
    same_dtype: Any
    exact: Any
    weights: Accuracy
    num_weights: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.swapped, self.same_dtype, self.exact))


@dataclass(frozen=True)
class Run:
    """What one forward and backward gave, by name, at real tokens only."""

    hidden: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


def load_three_models(checkpoint: Checkpoint, class_name: str, dtype: torch.dtype, device: torch.device) -> ThreeModels:
    """Loads a class three times. Weights that the checkpoint lacks are drawn once and shared.

    Raises RuntimeError where fastbert's class has other parameters than transformers'.
    """
    transformers.utils.logging.set_verbosity_error()  # a missing head is drawn below, for all three
    transformers.utils.logging.disable_progress_bar()
    config = copy.deepcopy(checkpoint.config)
    config.is_decoder = class_name == "BertLMHeadModel"
    config.use_cache = False
    torch.manual_seed(0)
    with transformers_classes():
        same_dtype = checkpoint.load(transformers, class_name, config=config, dtype=dtype)
    swapped = checkpoint.load(fastbert, class_name, config=config, dtype=dtype)
    saved = _names_in_checkpoint(checkpoint, class_name)
    expected, loaded = same_dtype.state_dict(), swapped.state_dict()
    if list(expected) != list(loaded):
        raise RuntimeError(f"{class_name}: expected transformers' state_dict keys, got {set(expected) ^ set(loaded)}")
    difference = max((expected[name].double() - loaded[name].double()).abs().max().item() for name in expected if name in saved)
    swapped.load_state_dict(expected)  # each model drew its own values for what the checkpoint lacks
    exact = copy.deepcopy(same_dtype).double()
    weights = Accuracy("weights", difference, 0.0, 0.0)
    swapped, same_dtype, exact = (model.to(device).eval() for model in (swapped, same_dtype, exact))
    return ThreeModels(swapped, same_dtype, exact, weights, len(saved))


def _names_in_checkpoint(checkpoint: Checkpoint, class_name: str) -> set[str]:
    with transformers_classes():
        model, info = checkpoint.read(getattr(transformers, class_name))
    return set(model.state_dict()) - set(info["missing_keys"])


def tokenize(checkpoint: Checkpoint, texts: list[str], device: torch.device) -> dict[str, Tensor]:
    """The texts as one padded batch, (batch, seqlen) each. Raises InputError where no tokenizer belongs to the checkpoint."""
    encoded = checkpoint.require_tokenizer()(
        texts, padding=True, truncation=True, max_length=checkpoint.config.max_position_embeddings, return_tensors="pt"
    )
    return {name: tensor.to(device) for name, tensor in encoded.items()}


def run_model(model: Any, batch: dict[str, Tensor], labels: dict[str, Tensor], keep: Tensor) -> Run:
    """One forward and backward. keep: bool (batch, ..., seqlen), the real tokens.

    The backward starts from a sum of all outputs at real tokens, each weighted by fixed noise.
    """
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fastbert computes padding positions too")  # not of interest beside a report
        out = model(**batch, **labels, output_hidden_states=True)
    tensors = {name: value for name, value in out.items() if isinstance(value, Tensor)}
    outputs = {name: _at_real_tokens(value, keep) for name, value in tensors.items()}
    hidden = {
        "embeddings" if index == 0 else f"layer {index - 1}": _at_real_tokens(value, keep.flatten(0, -2)).detach()
        for index, value in enumerate(out.hidden_states)
    }
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=keep.device, dtype=next(iter(outputs.values())).dtype)
    for value in outputs.values():
        weights = torch.randn(value.shape, generator=generator).to(next(model.parameters()).dtype)
        total = total + (value * weights.to(value)).sum()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Run(hidden, {name: value.detach() for name, value in outputs.items()}, gradients)


def _at_real_tokens(value: Tensor, keep: Tensor) -> Tensor:
    """(batch, seqlen, ...) as (real tokens, ...); a tensor of another shape as it is."""
    return value[keep] if value.shape[: keep.dim()] == keep.shape else value
