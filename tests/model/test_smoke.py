"""A short test of each public part of the model: if this fails, look here before the conformance suite."""

import subprocess
import sys

import pytest
import torch
import transformers

import fastbert
from fastbert.model.padding import layout as padding

CONFIG = transformers.BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]])
IDS = torch.randint(0, 60, MASK.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models():
    original, swapped = transformers.BertModel(CONFIG).eval(), fastbert.BertModel(CONFIG).eval()
    swapped.load_state_dict(original.state_dict())
    return original, swapped


def test_same_answer_at_real_tokens_and_zeros_at_padding(models):
    expected, got = (model(IDS, attention_mask=MASK) for model in models)
    real = MASK.bool()
    torch.testing.assert_close(got.last_hidden_state[real], expected.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)
    assert not got.last_hidden_state[~real].any()


def test_packed_by_the_caller(models):
    _, model = models
    lengths = MASK[:2].sum(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    packed = model(IDS[:2][MASK[:2].bool()], cu_seqlens=cu_seqlens, max_seqlen=6)
    padded = model(IDS[:2], attention_mask=MASK[:2])
    torch.testing.assert_close(packed.last_hidden_state, padded.last_hidden_state[MASK[:2].bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.pooler_output, padded.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("reader", [None, "real", "padding"])
def test_layout_packs_what_is_needed_and_unpacks_it_where_it_was(pooled, reader):
    keep = MASK.bool()
    positions = {None: None, "real": keep, "padding": torch.ones_like(keep)}[reader]
    plan = padding.plan_layout(keep, *keep.shape, keep.device, loss_positions=positions, pooled=pooled)
    layout, places = plan.layout, torch.arange(keep.numel()).view_as(keep)
    rows = layout.pack(places)
    assert len(set(rows.tolist())) == len(rows)
    needed = keep.clone()
    needed[:, 0] |= pooled
    needed |= reader == "padding"
    assert torch.equal(layout.unpack(rows + 1) > 0, needed)
    keys = layout.cu_seqlens.diff() if layout.seqused_k is None else layout.seqused_k
    for sequence, (start, count) in enumerate(zip(layout.cu_seqlens.tolist(), keys.tolist())):
        assert rows[start : start + count].tolist() == places[sequence][keep[sequence]].tolist()  # real ones first, in order
    assert plan.loss_reads_padding == (reader == "padding")


def test_accelerate_explain_restore(models):
    model, _ = models
    before = model(IDS, attention_mask=MASK).pooler_output
    parameters = dict(model.named_parameters())
    assert fastbert.accelerate(model) is model
    assert isinstance(model, fastbert.BertModel)
    torch.testing.assert_close(model(IDS, attention_mask=MASK).pooler_output, before, rtol=1e-5, atol=1e-5)
    explanation = fastbert.explain(model)
    assert explanation.notes["last call"].startswith("packed")
    assert {decision.implementation for decision in explanation.decisions} == {"fastbert, PyTorch", "transformers"}
    model.encoder.layer[1].register_forward_hook(lambda *_: None)
    assert "a forward hook on BertLayer" in str(fastbert.explain(model))
    fastbert.restore(model)
    assert type(model) is transformers.BertModel
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_importing_starts_nothing():
    code = (
        "import sys, torch; from transformers import BertModel; before = set(sys.modules)\n"
        "import fastbert; fastbert.BertModel, fastbert.explain\n"
        "assert not any(name.split('.')[0] == 'triton' for name in set(sys.modules) - before), 'triton'\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
