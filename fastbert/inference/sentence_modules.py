"""The modules of sentence-transformers that follow the encoder, on packed tokens: pooling, Dense, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.utils.errors import InputError

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"


@dataclass
class Features:
    """What the modules read and write.

    values: TOKENS (tokens, D) and, once pooled, SENTENCE (batch, D), in float32. bounds: int64 (batch + 1,), the start of each
    text and the end. prompt: tokens of each text that are its prompt, fewer than it has.
    """

    values: dict[str, Tensor]
    bounds: Tensor
    prompt: int = 0


class Pooling(nn.Module):
    """One vector per text, the concatenation of several modes. with_prompt: whether the prompt's tokens are pooled too."""

    def __init__(self, modes: Sequence[str], with_prompt: bool = True) -> None:
        super().__init__()
        self.modes, self.with_prompt = tuple(modes), with_prompt

    def forward(self, features: Features) -> None:
        hidden, skipped = features.values[TOKENS], 0 if self.with_prompt else features.prompt
        features.values[SENTENCE] = torch.cat([pool(hidden, features.bounds, mode, skipped) for mode in self.modes], -1)

    def extra_repr(self) -> str:
        return f"{'+'.join(self.modes)} pooling{'' if self.with_prompt else ' without the prompt'}"


def pool(hidden: Tensor, bounds: Tensor, mode: str, skipped: int = 0) -> Tensor:
    """Pools hidden states (tokens, D) to (batch, D).

    bounds: int64 (batch + 1,). mode: one of MODES. skipped: first tokens of each text that are ignored; every text has more.
    """
    if mode == "cls":
        return hidden.index_select(0, bounds[:-1] + skipped)
    if mode == "lasttoken":
        return hidden.index_select(0, bounds[1:] - 1)
    lengths = bounds.diff()
    kept = lengths - skipped
    if mode == "max":
        return _reduce(hidden, "max", kept, skipped)
    if mode == "weightedmean":
        first = torch.repeat_interleave(bounds[:-1], lengths, output_size=len(hidden))
        positions = (torch.arange(len(hidden), device=hidden.device) - first + 1).to(hidden)[:, None]  # (tokens, 1)
        return _reduce(hidden * positions, "sum", kept, skipped) / _reduce(positions, "sum", kept, skipped)
    total = _reduce(hidden, "sum", kept, skipped)
    return total / (kept if mode == "mean" else kept.to(total).sqrt())[:, None]


def _reduce(values: Tensor, how: str, kept: Tensor, skipped: int) -> Tensor:
    """Reduces the last `kept` tokens of each text. unsafe: without a check that would synchronise with the device."""
    if not skipped:
        return torch.segment_reduce(values, how, lengths=kept, unsafe=True)
    lengths = torch.stack([torch.full_like(kept, skipped), kept], 1).flatten()
    return torch.segment_reduce(values, how, lengths=lengths, unsafe=True)[1::2]


class Dense(nn.Module):
    """A linear layer and an activation, with the parameter names of sentence-transformers."""

    def __init__(self, settings: dict[str, Any], source: str, target: str, activation: nn.Module) -> None:
        super().__init__()
        width, self.size = settings["in_features"], settings["out_features"]
        self.source, self.target = source, target
        self.linear = nn.Linear(width, self.size, bias=settings.get("bias", True))
        self.activation_function = activation
        self.with_residual = settings.get("use_residual", False)
        self.residual = nn.Linear(width, self.size, bias=False) if self.with_residual and width != self.size else None

    def forward(self, features: Features) -> None:
        x = features.values[self.source]
        found = self.activation_function(self.linear(x))
        if self.with_residual:
            found = found + (x if self.residual is None else self.residual(x))
        features.values[self.target] = found

    def extra_repr(self) -> str:
        return f"Dense to {self.size} ({type(self.activation_function).__name__})"


class Normalize(nn.Module):
    """Scales vectors to length 1."""

    def __init__(self, source: str = SENTENCE, target: str = SENTENCE) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, features: Features) -> None:
        features.values[self.target] = F.normalize(features.values[self.source], dim=-1)

    def extra_repr(self) -> str:
        return "normalised"


class LayerNorm(nn.Module):
    """Layer norm of the vectors, with the parameter names of sentence-transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, features: Features) -> None:
        features.values[SENTENCE] = self.norm(features.values[SENTENCE])

    def extra_repr(self) -> str:
        return "LayerNorm"


def activation(name: Any, file: str) -> nn.Module:
    """A module of torch by its dotted name. Raises InputError for any other, or one that needs arguments."""
    short = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.nn.") else ""
    kind = nn.Identity if short == "Identity" else getattr(nn.modules.activation, short, None)
    try:
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return kind().eval()
    except TypeError:  # it needs arguments, which are not saved
        pass
    raise InputError(f"expected an activation of torch.nn without options in {file}, got {name!r}")
