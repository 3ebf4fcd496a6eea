"""The samples of every optimisation step, divided among processes and micro-batches, as packed batches.

An epoch is a permutation of the samples, grouped by length within pools of steps. A step holds about `batch_tokens` real
tokens, whatever the number of processes; its samples are divided among the processes and their micro-batches so that each has
about the same number of tokens. Everything is a function of (seed, step), so a resumed run reads nothing that came before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .masking import Masker, random_words
from .shards import Shards

POOL_STEPS = 32  # steps whose samples are sorted together
ORDER_STREAM, POOL_STREAM = 1, 2


@dataclass(frozen=True)
class Plan:
    """Which samples each step of a training holds.

    lengths: tokens of every sample, int64 (samples,). batch_tokens: real tokens of one step, about. seed: of the order.
    Raises ValueError for batch_tokens above those of the data or below those of two longest samples.
    """

    lengths: np.ndarray
    batch_tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ValueError(f"expected at least one token in a step, got batch_tokens {self.batch_tokens}")
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        if self.batch_tokens < 2 * longest:
            raise ValueError(
                f"expected steps of at least two of the longest samples, {2 * longest}, got {self.batch_tokens} tokens"
            )
        if self.total_tokens < self.batch_tokens:
            raise ValueError(
                f"expected at most as many tokens in a step as the data has, {self.total_tokens}, got {self.batch_tokens}"
            )

    @cached_property
    def total_tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps that pass every sample once, all of about the same number of tokens."""
        return self.total_tokens // self.batch_tokens

    def samples(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, sample numbers of this step)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order, bounds = _epoch(self, epoch)
        return epoch, order[bounds[index] : bounds[index + 1]]

    def __hash__(self) -> int:
        return hash((id(self.lengths), self.batch_tokens, self.seed))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        same = (self.batch_tokens, self.seed) == (other.batch_tokens, other.seed)
        return same and self.lengths is other.lengths


@lru_cache(maxsize=2)
def _epoch(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(order of the samples (samples,), start of every step in it and the end (steps + 1,))."""
    count = len(plan.lengths)
    order = np.argsort(random_words(plan.seed, epoch, ORDER_STREAM, size=count), kind="stable")
    bounds = _cut(plan.lengths[order], plan.steps_per_epoch)
    # Within a pool of steps: sort by length, cut into steps again, and shuffle these, so that lengths do not drift.
    grouped = np.empty_like(order)
    sizes: list[int] = []
    filled = 0
    for first in range(0, plan.steps_per_epoch, POOL_STEPS):
        last = min(first + POOL_STEPS, plan.steps_per_epoch)
        pool = order[bounds[first] : bounds[last]]
        pool = pool[np.argsort(plan.lengths[pool], kind="stable")]
        cuts = _cut(plan.lengths[pool], last - first)
        shuffled = np.argsort(random_words(plan.seed, epoch, POOL_STREAM, first, size=last - first), kind="stable")
        for index in shuffled:
            piece = pool[cuts[index] : cuts[index + 1]]
            grouped[filled : filled + len(piece)] = piece
            sizes.append(len(piece))
            filled += len(piece)
    return grouped, np.cumsum([0, *sizes])


def _cut(lengths: np.ndarray, pieces: int) -> np.ndarray:
    """Bounds (pieces + 1,) that cut samples into pieces of about equal tokens, from 0 to the end."""
    ends = np.cumsum(lengths)
    targets = ends[-1] * np.arange(1, pieces) / pieces
    inner = np.searchsorted(ends, targets, side="left") + 1
    return np.concatenate([[0], np.minimum(inner, len(lengths)), [len(lengths)]])


def deal(samples: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Divides the samples of a step into `parts` groups of nearly equal tokens: longest first, each to the smallest group."""
    order = np.argsort(-lengths[samples], kind="stable")
    groups: list[list[int]] = [[] for _ in range(parts)]
    tokens = np.zeros(parts, np.int64)
    for sample in samples[order]:
        smallest = int(np.argmin(tokens))
        groups[smallest].append(int(sample))
        tokens[smallest] += lengths[sample]
    return [np.array(group, np.int64) for group in groups]


@dataclass(frozen=True)
class Phase:
    """A part of the training on one prepared folder: for example 128 tokens first and 512 later."""

    shards: Shards
    masker: Masker
    plan: Plan
    steps: int


@lru_cache(maxsize=4)
def _deal_step(plan: Plan, step: int, parts: int) -> tuple[int, list[np.ndarray]]:
    epoch, samples = plan.samples(step)
    return epoch, deal(samples, plan.lengths, parts)


class MicroBatches(IterableDataset):
    """The packed micro-batches of one process, `accumulation` per step, from a step on.

    process: (rank, number of processes). Worker processes of a DataLoader take turns, so the order never changes.
    Raises ValueError where a micro-batch would be empty.
    """

    def __init__(
        self, phases: Sequence[Phase], *, process: tuple[int, int] = (0, 1), accumulation: int = 1, first_step: int = 0
    ) -> None:
        rank, world = process
        if not 0 <= rank < world or accumulation < 1:
            raise ValueError(f"expected a rank below {world} and an accumulation of at least 1, got {rank} and {accumulation}")
        for phase in phases:
            fewest, parts = phase.plan.batch_tokens // int(phase.plan.lengths.max()) - 1, world * accumulation
            if fewest < parts:
                raise ValueError(
                    f"expected at most {fewest} micro-batches in a step of {phase.plan.batch_tokens} tokens, so that none is "
                    f"empty, got {world} processes times {accumulation}"
                )
        self.phases, self.rank, self.world = tuple(phases), rank, world
        self.accumulation, self.first_step = accumulation, first_step

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def epochs_after(self, step: int) -> float:
        """How many epochs of the current phase are done after `step` steps."""
        for phase in self.phases:
            if step <= phase.steps:
                break
            step -= phase.steps
        return step / phase.plan.steps_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self.first_step * self.accumulation + offset, self.steps * self.accumulation, stride):
            yield self.micro_batch(number)

    def locate(self, number: int) -> tuple[Phase, int, np.ndarray]:
        """(phase, epoch of the phase, sample numbers) of micro-batch `number` of this process."""
        step, index = divmod(number, self.accumulation)
        for phase in self.phases:
            if step < phase.steps:
                epoch, parts = _deal_step(phase.plan, step, self.world * self.accumulation)
                return phase, epoch, parts[index * self.world + self.rank]
            step -= phase.steps
        raise IndexError(f"expected a micro-batch below {self.steps * self.accumulation}, got {number}")

    def micro_batch(self, number: int) -> dict[str, Any]:
        phase, epoch, samples = self.locate(number)
        return collate(phase.shards, phase.masker, samples, epoch)


def collate(shards: Shards, masker: Masker, samples: Sequence[int] | np.ndarray, epoch: int) -> dict[str, Tensor | int]:
    """A packed batch for BertForPreTraining, without padding.

    samples: sample numbers, at least one. Returns input_ids, token_type_ids, labels: int64 (tokens,); next_sentence_label:
    int64 (batch,), 1 where B is random; cu_seqlens: int32 (batch + 1,); max_seqlen: an int.
    """
    ids, types, labels, is_random, lengths = [], [], [], [], []
    for number in samples:
        sample = shards[int(number)]
        masked, label = masker(sample, int(number), epoch)
        ids.append(masked)
        labels.append(label)
        types.append(np.arange(len(masked)) >= sample.first_length)
        is_random.append(sample.is_random_next)
        lengths.append(len(masked))
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids)),
        "token_type_ids": torch.from_numpy(np.concatenate(types).astype(np.int64)),
        "labels": torch.from_numpy(np.concatenate(labels)),
        "next_sentence_label": torch.tensor(is_random, dtype=torch.int64),
        "cu_seqlens": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        "max_seqlen": max(lengths),
    }
