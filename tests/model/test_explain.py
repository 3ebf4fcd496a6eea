"""`fastbert.explain`: which implementation runs each part, and why."""

import pytest
import torch
from torch import nn

from fastbert import accelerate, explain, restore
from tests.model.parity import (
    HEADS,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    labels_for,
    make_batch,
    pair,
    quiet_transformers,
    snapshot,
)


def lines_of(model) -> list[str]:
    return str(explain(model)).splitlines()


def line_with(model, *words: str) -> str:
    found = [line for line in lines_of(model) if all(word in line for word in words)]
    assert found, f"no line with {words} in:\n{explain(model)}"
    return found[0]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_explain_names_every_part(head):
    _, fast = pair(head)
    text = str(explain(fast))
    assert text.splitlines()[0].startswith(head.name)
    prefix = "" if head is MODEL else "bert."
    for part in ("embeddings", "encoder.layer.0-2.attention", "encoder.layer.0-2.intermediate", "encoder.layer.0-2.output"):
        assert f"{prefix}{part}" in text, part
    assert "backend: torch (tensors are on the CPU)" in text
    assert "float32 on cpu" in text
    assert line_with(fast, "encoder.layer.0-2", "attention", "fastbert, PyTorch")


def test_explain_changes_nothing():
    _, fast = pair(SEQUENCE)
    before = snapshot(fast)
    explain(fast)
    assert snapshot(fast) == before
    assert str(explain(fast)) == str(explain(fast))


def test_explain_of_transformers_own_model():
    reference, _ = pair(SEQUENCE)
    assert "accelerate" in line_with(reference, "transformers")
    assert "fastbert, PyTorch" not in str(explain(reference))
    assert "fastbert, PyTorch" in str(explain(accelerate(reference)))
    assert "fastbert, PyTorch" not in str(explain(restore(reference)))


def test_explain_tells_of_lora():
    from peft import LoraConfig, get_peft_model

    _, fast = pair(SEQUENCE)
    model = get_peft_model(fast, LoraConfig(target_modules=["query", "value"]))
    line = line_with(model, "attention.self: projections")
    assert "fastbert, PyTorch" not in line
    assert "query" in line
    assert "value" in line
    assert "fastbert, PyTorch" in line_with(model, "attention.self: attention")
    merged = model.merge_and_unload()
    assert "fastbert, PyTorch" in line_with(merged, "attention.self: projections")


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("encoder.layer.1", "1"),
        ("encoder.layer.1.attention.self.query", "1"),
        ("encoder.layer.2.output.dense", "2"),
        ("encoder.layer.0.attention.output.LayerNorm", "0"),
        ("encoder.layer.1.attention.output.dropout", "1"),
    ],
)
def test_explain_tells_of_a_hook_and_of_its_removal(path, layer):
    _, fast = pair(MODEL)
    before = str(explain(fast))
    handle = fast.get_submodule(path).register_forward_hook(lambda module, args, output: None)
    line = line_with(fast, f"encoder.layer.{layer}", "transformers", "hook")
    assert type(fast.get_submodule(path)).__name__ in line
    assert [line for line in lines_of(fast) if "fastbert, PyTorch" in line and "encoder.layer" in line], (
        "the other layers stay fused"
    )
    handle.remove()
    assert str(explain(fast)) == before


def test_explain_tells_of_an_exchanged_module():
    class Own(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    _, fast = pair(MODEL)
    fast.encoder.layer[0].output.LayerNorm = Own()
    assert "transformers" in line_with(fast, "encoder.layer.0", "Own instead of LayerNorm")
    fast.encoder.layer[2].output.dropout = Own()
    assert "transformers" in line_with(fast, "encoder.layer.2", "Own instead of Dropout")
    fast.embeddings.word_embeddings = nn.Embedding(120, 48, max_norm=1.0)
    assert "max_norm" in line_with(fast, "embeddings")


def test_explain_tells_what_the_last_call_took():
    _, fast = pair(QUESTION)
    assert "last call: none yet" in str(explain(fast))
    batch = make_batch("right")
    fast(**batch.inputs())
    assert line_with(fast, "last call") == "last call: packed"
    fast(**batch.inputs(**labels_for(QUESTION, batch)))
    assert "a loss reads padding positions" in line_with(fast, "last call")
    fast(**batch.inputs(**labels_for(QUESTION, batch)), real_tokens_only=True)
    assert line_with(fast, "last call") == "last call: packed"
    with quiet_transformers():
        fast(**batch.inputs(), output_attentions=True)
    assert "output_attentions" in line_with(fast, "last call")
    fast(**batch.inputs(attention_mask=torch.ones(5, 1, 12, 12, dtype=torch.bool)))
    assert "4 dimensions" in line_with(fast, "last call")


def test_explain_tells_of_custom_attention_and_of_the_config():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("explained_own", lambda *args, **kwargs: sdpa_attention_forward(*args, **kwargs))
    AttentionMaskInterface.register("explained_own", sdpa_mask)
    _, fast = pair(MODEL)
    fast.set_attn_implementation("explained_own")
    assert "explained_own" in line_with(fast, "transformers")
    fast.set_attn_implementation("sdpa")
    assert "fastbert, PyTorch" in str(explain(fast))
    fast.set_attn_implementation("eager")
    fast.config.output_attentions = True
    assert "output_attentions" in line_with(fast, "transformers")


def test_explain_tells_of_a_decoder_with_a_cache():
    _, fast = pair(MODEL, is_decoder=True)
    fast(**make_batch("no_mask").inputs())
    assert "cache" in line_with(fast, "last call")
    fast(**make_batch("no_mask").inputs(use_cache=False))
    assert "packed" in line_with(fast, "last call")


def test_output_capturing_hooks_do_not_take_the_fused_path_away():
    """transformers leaves its recording hooks on the layers after the first request; the path must survive them."""
    _, fast = pair(MODEL, attn_implementation="eager")
    before = [line for line in lines_of(fast) if "last call" not in line]
    batch = make_batch("right")
    fast(**batch.inputs(), output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in fast.modules())
    assert [line for line in lines_of(fast) if "last call" not in line] == before
    fast(**batch.inputs())
    assert line_with(fast, "last call") == "last call: packed"


def test_explain_through_a_sentence_transformer(sentence_encoder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(sentence_encoder, device="cpu")
    accelerate(model)
    assert line_with(model, "encoder.layer.0-5", "fastbert, PyTorch")


def test_explain_prints_with_rich():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=160)
    console.print(explain(pair(PRETRAINING)[1]))
    text = console.file.getvalue()
    assert "encoder.layer.0-2" in text
    assert "cls.predictions" in text
    assert "backend" in text


def test_explain_of_the_vocabulary_projection():
    assert "labelled positions" in line_with(pair(MASKED_LM)[1], "cls.predictions")
