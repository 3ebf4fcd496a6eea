"""A whole tiny BERT through compiled kernels, forward and backward, against transformers in float64.

By the rule that `fastbert verify` applies to a checkpoint: the loss and the logits may err twice as much as transformers in the
same dtype, gradients three times. With dropout, transformers applies the masks that the kernels drew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

import fastbert
from fastbert.kernels.dropout import new_seed
from fastbert.kernels.matmul.choose import use_gemm
from fastbert.kernels.specs import attention, layer_norm
from fastbert.kernels.specs.accuracy import OUT_FACTOR, compare_with_float64
from fastbert.model.layer import ATTENTION_OUTPUT_STREAM, ATTENTION_STREAM, OUTPUT_STREAM
from fastbert.verification.rows import GRADIENT_FACTOR
from tests.model.parity import randomise

SIZES = dict(
    vocab_size=97,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=160,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
SEED = 5  # of the dropout masks
DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
# Sequences up to 64 rows share tiles, longer ones have a tile of their own; one has a hole, one a single token.
RAGGED = (70, 1, 33, 7)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """config: changes of SIZES. gemm: who computes linear products, as in `use_gemm`. full: left out without --full."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    seqlens: tuple[int, ...] = RAGGED
    autocast: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    gemm: str = "auto"
    full: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def has_dropout(self) -> bool:
        return self.config.get("hidden_dropout_prob", 0.0) > 0.0

    def model_config(self) -> transformers.BertConfig:
        # transformers' other forms of attention draw their dropout mask out of reach.
        implementation = "eager" if self.has_dropout else "sdpa"
        return transformers.BertConfig(**SIZES | self.config, attn_implementation=implementation)


CASES = (
    Case("bf16", full=False),
    Case("bf16-dropout", config=DROPOUT, full=False),
    Case("bf16-triton-products", gemm="triton"),
    Case("bf16-triton-products-dropout", gemm="triton", config=DROPOUT),
    Case("bf16-autocast", autocast=True),
    Case("bf16-autocast-dropout", autocast=True, config=DROPOUT),
    Case("bf16-long", seqlens=(130, 97, 64)),
    Case("bf16-long-dropout", seqlens=(150, 40), config=DROPOUT),
    Case("bf16-head-dim-24", config=dict(hidden_size=96, num_attention_heads=4, intermediate_size=208)),
    Case("bf16-head-dim-24-triton-products", config=dict(hidden_size=96, num_attention_heads=4), gemm="triton"),
    Case("bf16-gelu-new", config=dict(hidden_act="gelu_new")),
    Case("bf16-relu", config=dict(hidden_act="relu")),
    Case("fp16", dtype=torch.float16),
    Case("fp16-triton-products-dropout", dtype=torch.float16, gemm="triton", config=DROPOUT),
    Case("fp16-autocast", dtype=torch.float16, autocast=True),
    Case("fp32", dtype=torch.float32),
    Case("fp32-dropout", dtype=torch.float32, config=DROPOUT),
    Case("fp32-triton-products", dtype=torch.float32, gemm="triton", seqlens=(20, 1, 9)),
    Case("fp32-head-dim-24-gelu-new", torch.float32, config=dict(hidden_size=96, num_attention_heads=4, hidden_act="gelu_new")),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full", False)
        metafunc.parametrize("case", [case for case in CASES if full or not case.full], ids=str)


def ragged_batch(seqlens: tuple[int, ...], vocab_size: int = SIZES["vocab_size"]) -> tuple[Tensors, Tensor]:
    """The inputs of a pre-training step, and bool (B, S): the real tokens, with a hole in the first row."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.arange(max(seqlens)) < torch.tensor(seqlens)[:, None]
    keep[0, 5:9] = False
    ids = torch.randint(1, vocab_size, keep.shape, generator=generator)
    inputs = {
        "input_ids": ids * keep,
        "attention_mask": keep.long(),
        "token_type_ids": (torch.arange(max(seqlens)) > 20).long().expand_as(keep),
        "labels": torch.where(keep & (torch.rand(keep.shape, generator=generator) < 0.3), ids, -100),
        "next_sentence_label": torch.arange(len(seqlens)) % 2,
    }
    return inputs, keep


def run(model: torch.nn.Module, inputs: Tensors, keep: Tensor, autocast: torch.dtype | None = None) -> Tensors:
    """Loss, logits at real tokens, and every gradient, by name."""
    torch.manual_seed(SEED)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        out = model(**inputs)
    out.loss.backward()
    results = {
        "loss": out.loss.detach(),
        "prediction_logits": out.prediction_logits.detach()[keep],
        "seq_relationship_logits": out.seq_relationship_logits.detach(),
    }
    return results | {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}


def drawn_masks(config: transformers.BertConfig, keep: Tensor) -> list[Tensor]:
    """The multipliers of every dropout of a forward, in the order of transformers' calls: of states (B, S, D), of attention
    (B, H, S, S). Kernels count rows and keys among the real tokens; padding keeps everything."""
    torch.manual_seed(SEED)
    embedding_seed, *layer_seeds = [new_seed(keep.device) for _ in range(1 + config.num_hidden_layers)]
    rows, heads = int(keep.sum()), config.num_attention_heads
    longest = int(keep.sum(1).max())

    def of_states(seed: Tensor, stream: int) -> Tensor:
        mask = torch.ones(*keep.shape, config.hidden_size)
        mask[keep] = layer_norm.dropout_mask((rows, config.hidden_size), config.hidden_dropout_prob, seed, stream)
        return mask

    def of_attention(seed: Tensor) -> Tensor:
        packed = attention.dropout_mask(heads, rows, longest, config.attention_probs_dropout_prob, seed, ATTENTION_STREAM)
        mask = torch.ones(keep.shape[0], heads, keep.shape[1], keep.shape[1])
        for sequence, queries in enumerate(packed.split(keep.sum(1).tolist(), dim=1)):  # (H, tokens, longest)
            (places,) = keep[sequence].nonzero(as_tuple=True)
            mask[sequence, :, places[:, None], places] = queries[:, :, : len(places)]
        return mask

    masks = [of_states(embedding_seed, 0)]
    for seed in layer_seeds:
        masks += [of_attention(seed), of_states(seed, ATTENTION_OUTPUT_STREAM), of_states(seed, OUTPUT_STREAM)]
    return masks


@contextmanager
def replayed(masks: list[Tensor]) -> Iterator[None]:
    """Within the `with` block PyTorch's dropout multiplies by these masks, one after the other, and all of them are used."""
    left = iter(masks)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return x
        mask = next(left)
        assert mask.shape == x.shape
        return x * mask.to(x.dtype)

    with mock.patch.object(F, "dropout", dropout):
        yield
    assert next(left, None) is None, "transformers applied fewer dropouts"


def worse_than_the_rule(ours: Tensors, same_dtype: Tensors, exact: Tensors, real_tokens: int, labels: int) -> list[str]:
    """What errs more than the rule allows, one line each."""
    assert ours.keys() == same_dtype.keys() == exact.keys()
    failed = []
    for name in exact:
        options: dict[str, Any] = dict(factor=OUT_FACTOR, summed_rows=labels if name == "loss" else 0)
        if name.startswith("gradient"):
            # The true gradient of a key bias is zero: its summands are as large as those of the key weight.
            of_weight = exact[name.removesuffix("bias") + "weight"] if name.endswith("key.bias") else exact[name].new_zeros(())
            options = dict(factor=GRADIENT_FACTOR, summed_rows=real_tokens, scale=of_weight.abs().max().item())
        accuracy = compare_with_float64(name, ours[name], same_dtype[name], exact[name], **options)
        if not accuracy.passed:
            failed.append(str(accuracy))
    return failed


def test_pretraining_step_by_the_rule(case, emulator):
    """Loss, logits, next-sentence logits and every gradient; each layer's kernels ran, none fell back."""
    config, autocast = case.model_config(), case.dtype if case.autocast else None
    weights = randomise(transformers.BertForPreTraining(config)).to(torch.float32 if case.autocast else case.dtype)
    inputs, keep = ragged_batch(case.seqlens)

    def loaded(library: Any, dtype: torch.dtype) -> torch.nn.Module:
        model = library.BertForPreTraining(config)
        model.load_state_dict(weights.state_dict())
        return model.to(dtype).train(case.has_dropout)

    dtype = torch.float32 if case.autocast else case.dtype
    with use_gemm(case.gemm):
        ours = run(loaded(fastbert, dtype), inputs, keep, autocast)
    assert_kernels_ran(emulator.stats.kernels, case)
    masks = drawn_masks(config, keep) if case.has_dropout else []
    with replayed(masks):
        same_dtype = run(loaded(transformers, dtype), inputs, keep, autocast)
    with replayed(masks):
        exact = run(loaded(transformers, torch.float64), inputs, keep)
    failed = worse_than_the_rule(ours, same_dtype, exact, int(keep.sum()), int((inputs["labels"] != -100).sum()))
    assert not failed, "\n".join(failed)


def assert_kernels_ran(kernels: dict[str, Any], case: Case) -> None:
    """At least one launch for each layer (or for the embedding) and direction, so that no fallback passes unseen."""
    layers = SIZES["num_hidden_layers"]
    expected = {"embedding_fwd": 1, "embedding_bwd": 1, "attention_fwd": layers, "attention_bwd": layers}
    expected |= {"layer_norm_fwd": 2 * layers + 1, "layer_norm_bwd": 2 * layers + 1}
    if case.gemm == "triton":  # QKV, after attention, into and out of the feed-forward, in the head
        expected |= {"gemm_fwd": 4 * layers + 1, "gemm_dgrad": 4 * layers + 1, "gemm_wgrad": 4 * layers + 1}
    elif case.dtype != torch.float32:  # those with an activation
        expected |= {"gemm_fwd": layers + 1, "gemm_dgrad": layers}
    launches = {prefix: sum(one.launches for name, one in kernels.items() if name.startswith(prefix)) for prefix in expected}
    assert all(launches[prefix] >= expected[prefix] for prefix in expected), f"expected {expected}, got {launches}"


def test_dropout_repeats_and_survives_checkpointing(emulator):
    """The same seed gives the same bits, recomputed by gradient checkpointing too; another seed gives others."""
    torch.manual_seed(0)
    model = fastbert.BertForPreTraining(transformers.BertConfig(**SIZES | DROPOUT)).bfloat16().train()
    inputs, _ = ragged_batch((40, 1, 9))

    def step(seed: int) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(seed)
        loss = model(**inputs).loss
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    first, again, other = step(1), step(1), step(2)
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(one, two) for one, two in zip(first, other) if one.count_nonzero())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = emulator.stats.kernels["attention_fwd_short_kernel"].launches
    assert all(map(torch.equal, first, step(1)))
    assert emulator.stats.kernels["attention_fwd_short_kernel"].launches == before + 2 * SIZES["num_hidden_layers"]
