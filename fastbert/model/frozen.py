"""Features of a frozen encoder: computed once, kept in a memory-mapped file while heads are trained on them; and the encoder
with its trained head, saved and loaded again.

A saved folder holds the encoder as a BertModel with its tokenizer (`config.json`, `model.safetensors`), unless the head is one
of transformers' own; beside it `head.safetensors` and `frozen.json`, from which `load_frozen` builds the whole.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

import fastbert
from fastbert.tasks.features import Feature, batches_by_length, collate, collate_labels
from fastbert.utils.checkpoints import quiet
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole
from fastbert.utils.folders import reading

from .frozen_heads import KINDS, FrozenHead, Shape, pool

HEAD, SHAPE = "head.safetensors", "frozen.json"
FORMAT = 1
STORED = {torch.float32: np.float32, torch.bfloat16: np.uint16}  # NumPy has no bfloat16: its bits are kept


def encode(encoder: nn.Module, shape: Shape, batch: dict[str, Any]) -> Tensor:
    """The features of a packed batch: (tokens, states, hidden), or (sequences, states, hidden) where the shape pools them."""
    names = ("input_ids", "token_type_ids", "cu_seqlens", "max_seqlen")
    with torch.no_grad():
        states = encoder(**{name: batch[name] for name in names if name in batch}, output_hidden_states=True).hidden_states
        found = torch.stack([states[number] for number in shape.states], 1)
        return pool(found, batch["cu_seqlens"], str(shape.pooling)) if shape.pools_features else found


class FeatureCache:
    """The features of examples under a frozen encoder, computed when they are first needed. A context: its file ends with it.

    encoder: is put in eval mode, and gets no gradient. file: memory-mapped. dtype: that of `STORED` to compute and keep in.
    """

    def __init__(
        self, encoder: nn.Module, shape: Shape, features: Sequence[Feature], file: Path, dtype: torch.dtype = torch.float32
    ) -> None:
        self.encoder, self.shape, self.features = encoder.eval().requires_grad_(False), shape, features
        self.file, self.dtype = file, dtype
        rows = [len(one.sequences) if shape.pools_features else len(one) for one in features]
        self.starts = np.cumsum([0, *rows])
        self.array: np.memmap | None = None

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return int(self.starts[-1]) * len(self.shape.states) * self.shape.hidden_size * np.dtype(STORED[self.dtype]).itemsize

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.array = None
        self.file.unlink(missing_ok=True)

    def check_room(self, folder: Path) -> None:
        """Raises InputError where the disk of the folder, or of the nearest one above that exists, has no room for the file."""
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if self.nbytes > free:
            raise InputError(f"expected {self.nbytes:,} bytes of disk for the features, got {free:,} free in {folder}")

    def fill(self) -> None:
        """Runs the encoder over all examples, unless that was done. Raises OSError where the file cannot be made."""
        if self.array is not None:
            return
        size = (int(self.starts[-1]), len(self.shape.states), self.shape.hidden_size)
        with self.file.open("wb") as handle:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash on a later write to memory
                os.posix_fallocate(handle.fileno(), 0, self.nbytes)
            else:
                handle.truncate(self.nbytes)
        array = np.memmap(self.file, STORED[self.dtype], "r+", shape=size)
        device = next(self.encoder.parameters()).device
        autocast = torch.autocast(device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()
        for numbers in batches_by_length(self.features):
            chosen = [self.features[number] for number in numbers]
            batch = _moved(collate([Feature(one.sequences) for one in chosen]), device)
            with autocast:
                found = encode(self.encoder, self.shape, batch).to(self.dtype).cpu()
            values = (found.view(torch.uint16) if self.dtype == torch.bfloat16 else found).numpy()
            at = 0
            for number in numbers:
                start, stop = self.starts[number], self.starts[number + 1]
                array[start:stop] = values[at : at + stop - start]
                at += stop - start
        self.array = array

    def collate(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What `FrozenHead` takes for these examples, on the host, with their labels where they have any."""
        self.fill()
        assert self.array is not None
        values = np.concatenate([self.array[self.starts[one] : self.starts[one + 1]] for one in numbers])
        stored = torch.from_numpy(values)
        chosen = [self.features[one] for one in numbers]
        lengths = [len(ids) for one in chosen for ids, _ in one.sequences]
        batch: dict[str, Any] = {
            "features": stored.view(torch.bfloat16) if self.dtype == torch.bfloat16 else stored,
            "cu_seqlens": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        }
        if len(chosen[0].sequences) > 1:
            batch["num_choices"] = len(chosen[0].sequences)
        return batch | collate_labels(chosen)

    @torch.no_grad()
    def predict(self, head: FrozenHead, numbers: Sequence[int]) -> list[np.ndarray]:
        """The logits of these examples, as `features.predict` gives them. The head is left in the mode it was in."""
        was_training = head.training
        head.eval()
        device = next(head.parameters()).device
        found: list[np.ndarray] = [np.empty(0)] * len(numbers)
        try:
            for places in batches_by_length([self.features[number] for number in numbers]):
                chosen = [numbers[place] for place in places]
                batch = _moved({k: v for k, v in self.collate(chosen).items() if k in INPUTS}, device)
                logits = head(**batch)["logits"].float().cpu()
                is_of_tokens = self.shape.kind in ("tokens", "spans")
                parts = logits.split([len(self.features[one]) for one in chosen]) if is_of_tokens else logits
                for place, part in zip(places, parts):
                    found[place] = part.numpy()
        finally:
            head.train(was_training)
        return found


INPUTS = ("features", "cu_seqlens", "num_choices")


class FrozenModel(nn.Module):
    """An encoder that is not trained under a head that was, called as fastbert's own classes are with a packed batch.

    config: the encoder's, with the task's labels. stands_for: the class whose outputs it gives.
    """

    def __init__(self, encoder: nn.Module, head: FrozenHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder.eval().requires_grad_(False), head
        self.config: Any = encoder.config
        self.stands_for = head.shape.task_class
        self.name_or_path = str(getattr(encoder, "name_or_path", ""))

    @property
    def device(self) -> torch.device:
        return self.head.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.classifier.weight.dtype

    def train(self, mode: bool = True) -> "FrozenModel":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, *, cu_seqlens: Tensor, max_seqlen: int,
        num_choices: int = 1, **labels: Tensor,
    ) -> Any:  # fmt: skip
        """logits, or start_logits and end_logits, as of the class it stands for; with labels also the loss."""
        batch = {"input_ids": input_ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        features = encode(self.encoder, self.head.shape, batch)
        found = self.head(features, cu_seqlens, num_choices, **labels)
        loss: Any = found.get("loss")
        if self.head.shape.kind == "spans":
            starts, ends = found["logits"].unbind(-1)
            return QuestionAnsweringModelOutput(loss=loss, start_logits=starts, end_logits=ends)  # type: ignore[arg-type]
        return SequenceClassifierOutput(loss=loss, logits=found["logits"])  # type: ignore[arg-type]


def save_frozen(model: FrozenModel, folder: Path) -> None:
    """Writes encoder, head and `frozen.json` into the folder."""
    with quiet():
        model.encoder.save_pretrained(folder)  # type: ignore[operator]
    state = {name: value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    save_file(state, folder / HEAD)
    content = {"format": FORMAT, "dropout": model.head.dropout.p, **model.head.shape.as_dict()}
    write_whole(folder / SHAPE, json.dumps(content, indent=1) + "\n")


def is_frozen(path: str | Path) -> bool:
    return (Path(path) / SHAPE).is_file()


def load_frozen(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> FrozenModel:
    """What `fastbert finetune --frozen` saved, in eval mode on the CPU.

    Call it with a packed batch (`features.collate`), or give the folder to `fastbert.classify`, `tag` or `answer`.

    Raises InputError, naming the file, where the folder is none of this kind or a part does not fit.
    """
    folder = Path(folder)
    if not is_frozen(folder):
        raise InputError(f"expected {SHAPE} in {folder}, got none")
    try:
        content = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
        version, dropout = content.pop("format"), float(content.pop("dropout"))
        shape = Shape(**content | {"states": tuple(content["states"])})
        if version != FORMAT or shape.task_class not in KINDS:
            raise ValueError(f"format {version!r} and task_class {shape.task_class!r}")
        head = FrozenHead(shape, dropout)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"expected what fastbert wrote, of format {FORMAT}, in {folder / SHAPE}, got: {error}") from error
    try:
        head.load_state_dict(load_file(folder / HEAD))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"expected the weights of {folder / SHAPE} in {folder / HEAD}, got: {error}") from error
    with quiet(), reading("weights of the shapes that config.json names", str(folder)):
        encoder, found = fastbert.BertModel.from_pretrained(
            str(folder), add_pooling_layer=False, dtype=dtype, output_loading_info=True
        )
    if found["missing_keys"]:
        raise InputError(f"expected all weights of the encoder in {folder}, got none for {sorted(found['missing_keys'])[0]}")
    if encoder.config.hidden_size != shape.hidden_size or encoder.config.num_hidden_layers < max(shape.states):
        raise InputError(f"expected an encoder of hidden size {shape.hidden_size} in {folder}, got another")
    return FrozenModel(encoder, head.to(dtype)).eval()


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
