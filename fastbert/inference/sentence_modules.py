"""The modules of sentence-transformers behind the encoder, on packed tokens: from hidden states to one vector a text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from fastbert.utils.errors import InputError
from fastbert.utils.folders import reading

from .sentence_folder import Module, SentenceFolder

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# How older versions spell them, in the order in which several are put side by side.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
ACTIVATIONS = "torch.nn.modules."
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Features:
    """values: TOKENS (tokens, D) and, once pooled, SENTENCE (batch, D), in float32. bounds: int64 (batch + 1,), where each
    text begins among the tokens. prompt: how many tokens of each text are its prompt, less than it has."""

    values: dict[str, Tensor]
    bounds: Tensor
    prompt: int = 0


class Pooling(nn.Module):
    """Tokens to a vector a text, of several modes side by side. with_prompt: over the tokens of the prompt as well."""

    def __init__(self, modes: Sequence[str], with_prompt: bool = True) -> None:
        super().__init__()
        self.modes, self.with_prompt = tuple(modes), with_prompt

    def forward(self, features: Features) -> None:
        hidden, skipped = features.values[TOKENS], 0 if self.with_prompt else features.prompt
        features.values[SENTENCE] = torch.cat([pool(hidden, features.bounds, mode, skipped) for mode in self.modes], -1)

    def extra_repr(self) -> str:
        return f"{'+'.join(self.modes)} pooling{'' if self.with_prompt else ' without the prompt'}"


def pool(hidden: Tensor, bounds: Tensor, mode: str, skipped: int = 0) -> Tensor:
    """(batch, D) of (tokens, D). bounds: int64 (batch + 1,). mode: one of MODES. skipped: first tokens of each text that are
    left out; every text has more."""
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
        places = (torch.arange(len(hidden), device=hidden.device) - first + 1).to(hidden)[:, None]
        return _reduce(hidden * places, "sum", kept, skipped) / _reduce(places, "sum", kept, skipped)
    total = _reduce(hidden, "sum", kept, skipped)
    return total / (kept if mode == "mean" else kept.to(total).sqrt())[:, None]


def _reduce(values: Tensor, how: str, kept: Tensor, skipped: int) -> Tensor:
    """Over the last `kept` tokens of each text. unsafe leaves out a check that would wait for the device."""
    if not skipped:
        return torch.segment_reduce(values, how, lengths=kept, unsafe=True)
    lengths = torch.stack([torch.full_like(kept, skipped), kept], 1).flatten()
    return torch.segment_reduce(values, how, lengths=lengths, unsafe=True)[1::2]


class Dense(nn.Module):
    """A linear layer and an activation, with the parameters' names of sentence-transformers."""

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
    """To length 1."""

    def __init__(self, source: str = SENTENCE, target: str = SENTENCE) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, features: Features) -> None:
        features.values[self.target] = F.normalize(features.values[self.source], dim=-1)

    def extra_repr(self) -> str:
        return "normalised"


class LayerNorm(nn.Module):
    """Of the vectors, with the parameters' names of sentence-transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, features: Features) -> None:
        features.values[SENTENCE] = self.norm(features.values[SENTENCE])

    def extra_repr(self) -> str:
        return "LayerNorm"


class Head(nn.Module):
    """All that follows the encoder. size: of a vector. steps: what is done, in words, in order."""

    def __init__(self, modules: Sequence[nn.Module], size: int, truncate_dim: int | None, normalize: bool) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)
        self.truncated = truncate_dim is not None and truncate_dim < size
        self.size = min(size, truncate_dim or size)
        self.normalize = normalize

    @property
    def steps(self) -> list[str]:
        found = [module.extra_repr() for module in self.chain]
        found += [f"cut to {self.size}"] * self.truncated + ["normalised"] * self.normalize
        return found if "normalised" in found else [*found, "not normalised"]

    @property
    def skips_prompt(self) -> bool:
        return any(isinstance(module, Pooling) and not module.with_prompt for module in self.chain)

    @property
    def digest(self) -> str:
        """Of the weights: another run with other ones is another run."""
        found = hashlib.sha256()
        for name, value in self.state_dict().items():
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def forward(self, hidden: Tensor, bounds: Tensor, prompt: int = 0) -> Tensor:
        """float32 (batch, size) of the last hidden state (tokens, D). bounds, prompt: as of Features."""
        features = Features({TOKENS: hidden.float()}, bounds, prompt)
        for module in self.chain:
            module(features)
        vectors = features.values[SENTENCE]
        vectors = vectors[:, : self.size] if self.truncated else vectors
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


def make_head(
    folder: SentenceFolder | None, width: int, *, pooling: str | None, normalize: bool | None, truncate_dim: int | None
) -> Head:
    """What a folder says, or the normalised mean where there is none.

    width: of the encoder's hidden state. pooling: in the place of the folder's. normalize: True for vectors of length 1 at the
    end, False without the Normalize that a folder ends with. truncate_dim: in the place of the folder's. Raises InputError,
    naming the file, where settings or weights do not fit.
    """
    if folder is None:
        return Head([Pooling([pooling or "mean"])], width, truncate_dim, normalize is not False)
    widths = {TOKENS: width}
    modules = [one for listed in folder.modules if (one := _make(folder.path, listed, widths, pooling)) is not None]
    if SENTENCE not in widths:
        raise InputError(f"expected a module Pooling in modules.json of {folder.path}, got none")
    if normalize is False:
        while isinstance(modules[-1], Normalize) and modules[-1].target == SENTENCE:
            modules.pop()
    size = folder.truncate_dim if truncate_dim is None else truncate_dim
    return Head(modules, widths[SENTENCE], size, normalize is True).eval().requires_grad_(False)


def _make(path: str, module: Module, widths: dict[str, int], pooling: str | None) -> nn.Module | None:
    """The module, None for one that does nothing; `widths` gains what it makes."""
    settings, file = module.settings, f"{module.folder}/config.json of {path}"
    if module.kind == "Pooling":
        modes = _modes(settings, file)
        modes = (pooling,) if pooling else modes
        widths[SENTENCE] = len(modes) * widths[TOKENS]
        return Pooling(modes, settings.get("include_prompt", True) is not False)
    if module.kind == "Dropout":
        return None
    source = settings.get("module_input_name", SENTENCE)
    target = settings.get("module_output_name")
    target = source if target is None else target
    known = " or ".join(widths)
    if not isinstance(source, str) or source not in widths or target not in (TOKENS, SENTENCE):
        raise InputError(f"expected module_input_name and module_output_name {known} in {file}, got {source!r} and {target!r}")
    if module.kind == "Normalize":
        widths[target] = widths[source]
        return Normalize(source, target)
    name = "dimension" if module.kind == "LayerNorm" else "in_features"
    if settings.get(name) != widths[source]:
        why = f", with {pooling} pooling" if pooling else ""
        raise InputError(f"expected {name} {widths[source]}{why} in {file}, got {settings.get(name)}")
    if module.kind == "LayerNorm":
        return _with_weights(path, module.folder, LayerNorm(widths[source]))
    size = settings.get("out_features")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"expected out_features of at least 1 in {file}, got {size!r}")
    widths[target] = size
    made = Dense(settings, source, target, activation(settings.get("activation_function", f"{ACTIVATIONS}Tanh"), file))
    return _with_weights(path, module.folder, made)


def _modes(settings: dict[str, Any], file: str) -> tuple[str, ...]:
    """Of a Pooling module, in the order in which they are put side by side."""
    old = [mode for key, mode in OLD_MODES.items() if settings.get(key)]
    said = settings.get("pooling_mode", old or "mean")
    modes = (said,) if isinstance(said, str) else tuple(said) if isinstance(said, list) else ()
    if not settings or not modes or any(mode not in MODES for mode in modes):
        raise InputError(f"expected pooling_mode of {', '.join(MODES)} in {file}, got {said if settings else 'none'}")
    return modes


def activation(name: Any, file: str) -> nn.Module:
    """A module of torch by its dotted name. Raises InputError for any other, or one with options of its own."""
    short = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.nn.") else ""
    kind = nn.Identity if short == "Identity" else getattr(nn.modules.activation, short, None)
    try:
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return kind().eval()
    except TypeError:  # it cannot be made without options, which are not kept
        pass
    raise InputError(f"expected an activation of torch.nn without options in {file}, got {name!r}")


def _with_weights(path: str, folder: str, module: nn.Module) -> nn.Module:
    with reading(f"the weights of {type(module).__name__} in {folder}", path):
        for name in WEIGHTS:
            file = transformers.utils.cached_file(
                path, f"{folder}/{name}",
                _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
            if file is not None:
                # weights_only: nothing but tensors is unpickled
                state = load_file(file) if Path(file).suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
                module.load_state_dict(state)
                return module
        raise InputError(f"expected {' or '.join(WEIGHTS)} in {folder} of {path}, got neither")
