"""A ragged batch through transformers (SDPA) and through fastbert, side by side, at BERT-base width.

On a CPU with one thread: what packing alone gains where sequences differ in length, and what it costs where they do not.
"""

import random

import pytest
import torch
import transformers

import fastbert

BATCH_SIZE, SEQLEN, NUM_LAYERS = 32, 128, 4


def ragged_lengths(seed: int) -> list[int]:
    """One sequence of the full length, the others short: fill rate below 0.4."""
    rng = random.Random(seed)
    return [SEQLEN, *(rng.randint(8, 80) for _ in range(BATCH_SIZE - 1))]


@pytest.mark.parametrize("lengths", ["ragged", "full"])
def test_inference_against_transformers_sdpa(lengths, side_by_side, quick, device):
    seqlens = ragged_lengths(0) if lengths == "ragged" else [SEQLEN] * BATCH_SIZE
    layers, hidden_size = (1, 64) if quick else (NUM_LAYERS, 768)
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=hidden_size, num_attention_heads=hidden_size // 64 or 1,
        intermediate_size=4 * hidden_size,
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval().to(device, dtype)
    ours = fastbert.BertModel(config).eval().to(device, dtype)
    ours.load_state_dict(theirs.state_dict())
    mask = torch.arange(SEQLEN) < torch.tensor(seqlens)[:, None]
    ids = torch.randint(5, config.vocab_size, mask.shape)
    batch = {"input_ids": (ids * mask).to(device), "attention_mask": mask.long().to(device)}
    fill = mask.float().mean().item()
    assert fill <= 0.40 or lengths == "full"

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            expected, got = theirs(**batch).last_hidden_state, ours(**batch).last_hidden_state
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(got[mask], expected[mask], rtol=tolerance, atol=tolerance)  # red: no number
            side_by_side(
                lambda: theirs(**batch),
                lambda: ours(**batch),
                rounds=1 if quick else 7,
                conditions=f"{layers} layers of width {hidden_size}, batch {BATCH_SIZE} x {SEQLEN}, fill {fill:.2f}, "
                f"{str(dtype).removeprefix('torch.')}, {device.type}, one CPU thread, baseline "
                f"transformers {transformers.__version__} {theirs.config._attn_implementation}",
            )
    finally:
        torch.set_num_threads(threads)
