"""Everything after the encoder of a sentence encoder: the modules of its folder with their weights, or a normalised mean."""

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
from .sentence_modules import MODES, SENTENCE, TOKENS, Dense, Features, LayerNorm, Normalize, Pooling, activation

# Pooling modes as older versions of sentence-transformers spell them, in the order in which several are concatenated.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DEFAULT_ACTIVATION = "torch.nn.modules.Tanh"  # of Dense
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Head(nn.Module):
    """A chain of modules. size: of a vector. steps: what is done, in words, in order."""

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
        """sha256 of the weights, to notice other weights when a run is resumed."""
        found = hashlib.sha256()
        for name, value in self.state_dict().items():
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def forward(self, hidden: Tensor, bounds: Tensor, prompt: int = 0) -> Tensor:
        """Vectors, float32 (batch, size), of the last hidden state (tokens, D). bounds, prompt: see `Features`."""
        features = Features({TOKENS: hidden.float()}, bounds, prompt)
        for module in self.chain:
            module(features)
        vectors = features.values[SENTENCE]
        vectors = vectors[:, : self.size] if self.truncated else vectors
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


@dataclass(frozen=True)
class Chain:
    """The modules of a folder with their weights, in order. size: of a vector. truncate_dim: the folder's."""

    modules: tuple[nn.Module, ...]
    size: int
    truncate_dim: int | None = None


def read_chain(folder: SentenceFolder, width: int, *, pooling: str | None, device: torch.device) -> Chain:
    """The modules of a folder, on the device. width: of the encoder's hidden state. pooling: instead of the folder's.

    Raises InputError, naming the file, where settings or weights do not fit.
    """
    widths = {TOKENS: width}
    built = [_build(folder.path, module, widths, pooling) for module in folder.modules]
    if SENTENCE not in widths:
        raise InputError(f"expected a module Pooling in modules.json of {folder.path}, got none")
    modules = tuple(module.eval().requires_grad_(False).to(device) for module in built if module is not None)
    return Chain(modules, widths[SENTENCE], folder.truncate_dim)


def make_head(
    chain: Chain | None, width: int, *, pooling: str | None, normalize: bool | None, truncate_dim: int | None
) -> Head:
    """The modules of a folder, or a normalised mean without one.

    width, pooling: see `read_chain`. normalize: True for vectors of length 1 at the end, False without a Normalize that a
    folder ends with. truncate_dim: instead of the folder's.
    """
    if chain is None:
        return Head([Pooling([pooling or "mean"])], width, truncate_dim, normalize is not False)
    modules = list(chain.modules)
    if normalize is False:
        while isinstance(modules[-1], Normalize) and modules[-1].target == SENTENCE:
            modules.pop()
    return Head(modules, chain.size, chain.truncate_dim if truncate_dim is None else truncate_dim, normalize is True).eval()


def _build(path: str, module: Module, widths: dict[str, int], pooling: str | None) -> nn.Module | None:
    """The module, None for one that does nothing at inference. widths: of the features so far; its own are added."""
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
    dense = Dense(settings, source, target, activation(settings.get("activation_function", DEFAULT_ACTIVATION), file))
    return _with_weights(path, module.folder, dense)


def _modes(settings: dict[str, Any], file: str) -> tuple[str, ...]:
    """The modes of a Pooling module, in the order in which they are concatenated."""
    old = [mode for key, mode in OLD_MODES.items() if settings.get(key)]
    saved = settings.get("pooling_mode", old or "mean")
    modes = (saved,) if isinstance(saved, str) else tuple(saved) if isinstance(saved, list) else ()
    if not settings or not modes or any(mode not in MODES for mode in modes):
        raise InputError(f"expected pooling_mode of {', '.join(MODES)} in {file}, got {saved if settings else 'none'}")
    return modes


def _with_weights(path: str, folder: str, module: nn.Module) -> nn.Module:
    with reading(f"the weights of {type(module).__name__} in {folder}", path):
        for name in WEIGHTS:
            file = transformers.utils.cached_file(
                path,
                f"{folder}/{name}",
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if file is not None:
                # weights_only: nothing but tensors is unpickled
                state = load_file(file) if Path(file).suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
                module.load_state_dict(state)
                return module
        raise InputError(f"expected {' or '.join(WEIGHTS)} in {folder} of {path}, got neither")
