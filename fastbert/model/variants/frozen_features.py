"""Features of a frozen encoder, computed once and kept in a memory-mapped file while heads are trained on them."""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.model.variants.frozen_heads import FrozenHead, Shape, pool
from fastbert.tasks.features import Feature, batches_by_length, collate, collate_labels
from fastbert.utils.errors import InputError

STORED = {torch.float32: np.float32, torch.bfloat16: np.uint16}  # NumPy has no bfloat16: its bits are kept
INPUTS = ("features", "cu_seqlens", "num_choices")  # of a head


def encode(encoder: nn.Module, shape: Shape, batch: dict[str, Any]) -> Tensor:
    """The features of a packed batch of T tokens: (T, states, D), or (sequences, states, D) where the shape pools them."""
    names = ("input_ids", "token_type_ids", "cu_seqlens", "max_seqlen")
    with torch.no_grad():
        states = encoder(**{name: batch[name] for name in names if name in batch}, output_hidden_states=True).hidden_states
        features = torch.stack([states[i] for i in shape.states], 1)  # (T, states, D)
        return pool(features, batch["cu_seqlens"], str(shape.pooling)) if shape.pools_features else features


class FeatureCache:
    """The features of examples under a frozen encoder, computed when they are first needed. A context that deletes its file.

    encoder: is put in eval mode and gets no gradients. features: the examples' tokens. file: memory-mapped. dtype: one of
    `STORED`, to compute and to store in.
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
        """The size of the file."""
        return int(self.starts[-1]) * len(self.shape.states) * self.shape.hidden_size * np.dtype(STORED[self.dtype]).itemsize

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.array = None
        self.file.unlink(missing_ok=True)

    def check_room(self, folder: Path) -> None:
        """Raises InputError where the disk of `folder`, which need not exist yet, has no room for the file."""
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if self.nbytes > free:
            raise InputError(f"expected {self.nbytes:,} bytes of disk for the features, got {free:,} free in {folder}")

    def fill(self) -> None:
        """Runs the encoder over all examples, once. Raises OSError where the file cannot be created."""
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
        for indices in batches_by_length(self.features):
            chosen = [self.features[i] for i in indices]
            batch = _moved(collate([Feature(one.sequences) for one in chosen]), device)
            with autocast:
                rows = encode(self.encoder, self.shape, batch).to(self.dtype).cpu()
            values = (rows.view(torch.uint16) if self.dtype == torch.bfloat16 else rows).numpy()
            offset = 0
            for i in indices:
                start, stop = self.starts[i], self.starts[i + 1]
                array[start:stop] = values[offset : offset + stop - start]
                offset += stop - start
        self.array = array

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The inputs of a `FrozenHead` for the examples at `indices`, on the CPU, with their labels where they have any."""
        self.fill()
        assert self.array is not None
        values = np.concatenate([self.array[self.starts[i] : self.starts[i + 1]] for i in indices])
        stored = torch.from_numpy(values)
        chosen = [self.features[i] for i in indices]
        lengths = [len(ids) for one in chosen for ids, _ in one.sequences]
        batch: dict[str, Any] = {
            "features": stored.view(torch.bfloat16) if self.dtype == torch.bfloat16 else stored,
            "cu_seqlens": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        }
        if len(chosen[0].sequences) > 1:
            batch["num_choices"] = len(chosen[0].sequences)
        return batch | collate_labels(chosen)

    @torch.no_grad()
    def predict(self, head: FrozenHead, indices: Sequence[int]) -> list[np.ndarray]:
        """The logits of the examples at `indices`, as `features.predict` returns them. The head's training mode is kept."""
        was_training = head.training
        head.eval()
        device = next(head.parameters()).device
        found: list[np.ndarray] = [np.empty(0)] * len(indices)
        try:
            for positions in batches_by_length([self.features[i] for i in indices]):
                chosen = [indices[position] for position in positions]
                batch = _moved({k: v for k, v in self.collate(chosen).items() if k in INPUTS}, device)
                logits = head(**batch)["logits"].float().cpu()
                is_of_tokens = self.shape.kind in ("tokens", "spans")
                parts = logits.split([len(self.features[i]) for i in chosen]) if is_of_tokens else logits
                for position, part in zip(positions, parts):
                    found[position] = part.numpy()
        finally:
            head.train(was_training)
        return found


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
