"""Models that stay in memory: a `Resident` for as long as it is kept, and the last few that the functions were asked for.

A checkpoint that was rewritten on the disk is read again, never answered from memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Union

import torch
from torch import nn

from fastbert.utils.errors import InputError

from . import loading
from .checkpoint_files import Files, files_of
from .loading import Loaded, require_fit
from .sentence_folder import HINTS
from .sentence_objects import kind_of, open_object

# A name or a folder, (model, tokenizer), a SentenceTransformer or a CrossEncoder, or one of these that stays in memory. Given
# models are of fastbert's classes and in eval mode.
Model = Union[str, Path, tuple[Any, Any], nn.Module, "Resident"]
KEPT = 4  # checkpoints that the functions keep

_kept: "OrderedDict[Hashable, Resident]" = OrderedDict()
_lock = threading.Lock()


class Resident:
    """A checkpoint whose weights are read once for every class that is asked for; or a given model.

    files: of the checkpoint, None to look for them. Any number of threads may call it. Raises InputError for a given model that
    cannot be used, or a device or dtype beside it; for a checkpoint only `load` does.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        files: Files | None = None,
    ) -> None:
        self.model = str(model) if isinstance(model, str | Path) else model
        self.device, self.dtype, self.files = device, dtype, files
        self._loaded: dict[Hashable, Loaded] = {}
        self._lock = threading.RLock()
        self.kind: str | None = None
        if isinstance(self.model, str | tuple):
            return
        self.kind = kind_of(model)
        if self.kind is None:
            raise InputError(
                "expected a name, a folder, (model, tokenizer), a SentenceTransformer or a CrossEncoder, got "
                f"{type(model).__name__}" + (": give its tokenizer too" if isinstance(model, nn.Module) else "")
            )
        if device is not None or dtype is not None:
            raise InputError("expected no device or dtype beside a loaded model, which is not moved")
        self._object = open_object(model, self.kind)

    @property
    def is_empty(self) -> bool:
        """Whether no weights were read yet."""
        return not self._loaded and self.kind is None

    def load(self, classes: tuple[str, ...], *, sentences: str | None = None, **kwargs: Any) -> Loaded:
        """As `loading.load`, but from memory at a second call.

        Raises InputError too where the checkpoint is not the one any more of which other weights are in memory.
        """
        if self.kind is not None:
            return self._of_object(classes, sentences)
        if isinstance(self.model, tuple):
            return self._of_pair(self.model, classes)
        key = (classes, sentences, *sorted(kwargs.items()))
        found = self._loaded.get(key)
        if found is None:
            with self._lock:
                found = self._loaded.get(key)
                if found is None:
                    found = self._loaded[key] = self._read(classes, sentences, kwargs)
        return found

    def given(self, classes: tuple[str, ...]) -> Loaded:
        """The given model. Raises InputError where it is of other classes, in training mode or without its tokenizer."""
        if self.kind is not None:
            return self._of_object(classes, self.kind)
        assert isinstance(self.model, tuple)
        return self._of_pair(self.model, classes)

    def _read(self, classes: tuple[str, ...], sentences: str | None, kwargs: dict[str, Any]) -> Loaded:
        name = str(self.model)
        files = files_of(name)
        if self._loaded and files != self.files:
            raise InputError(f"expected {name} as it was when its first weights were read, got other files: load it anew")
        found = loading.load(name, classes, device=self.device, dtype=self.dtype, sentences=sentences, **kwargs)
        self.files = files_of(name) if files is None else files  # a hub name may just have come here
        return found

    def _of_pair(self, pair: tuple[Any, ...], classes: tuple[str, ...]) -> Loaded:
        found = self._loaded.get("pair")
        if found is None:
            found = loading.load(pair, classes, device=self.device, dtype=self.dtype)
            self._loaded["pair"] = found
        else:
            require_fit(pair, classes)
        return found

    def _of_object(self, classes: tuple[str, ...], sentences: str | None) -> Loaded:
        if sentences != self.kind:
            hint = f": {HINTS[self.kind]}" if self.kind in HINTS else ""
            raise InputError(f"expected a model with the head of {' or '.join(classes[:3])}, got a {self.kind}{hint}")
        require_fit((self._object.model, self._object.tokenizer), classes)
        return self._object


def load(
    model: Model,
    classes: tuple[str, ...],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    sentences: str | None = None,
    **kwargs: Any,
) -> Loaded:
    """As `loading.load`; of a Resident, what is in memory already."""
    if isinstance(model, str | Path | tuple):
        return loading.load(model, classes, device=device, dtype=dtype, sentences=sentences, **kwargs)
    found = model if isinstance(model, Resident) else Resident(model, device, dtype)
    return found.load(classes, sentences=sentences, **kwargs)


def resident(
    model: Model | None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    default: Callable[[], str] | None = None,
) -> Resident:
    """The model as one that stays in memory: the same one again for the same files, device and dtype; a given one is not kept.

    default: gives the folder for None.
    """
    if isinstance(model, Resident):
        return model
    if model is None and default is not None:
        model = default()
    files = files_of(str(model)) if isinstance(model, str | Path) else None
    if model is None or files is None:
        return Resident(model, device, dtype)  # type: ignore[arg-type]
    place = files[0], str(model), *_place(*loading.resolve(device, dtype))
    with _lock:
        found = _kept.get(place)
        if found is None or found.files != files:
            found = _kept[place] = Resident(model, device, dtype, files)
        _kept.move_to_end(place)
        while len(_kept) > KEPT:  # first those that could not be loaded
            del _kept[next((key for key, one in _kept.items() if one.is_empty and one is not found), next(iter(_kept)))]
    return found


def _place(device: torch.device, dtype: torch.dtype) -> tuple[str, int | None, torch.dtype]:
    index = device.index
    if device.type == "cuda" and index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return device.type, index, dtype


def clear_cache() -> None:
    """Forgets the models that `embed`, `classify` and the other functions keep, so that their memory is free again.

    They keep the last four checkpoints they were asked for by name or folder, on the device; a call for one of these takes
    milliseconds. A checkpoint whose files have changed is read again by itself. An `Encoder` keeps its own.
    """
    with _lock:
        _kept.clear()
