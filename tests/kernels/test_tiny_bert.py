"""A whole BERT through the Triton kernels, forward and backward, against transformers: outputs and every gradient."""

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import fastbert
from fastbert.kernels import resolve_backend


def tiny_config(**changes) -> transformers.BertConfig:
    settings = dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=160,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertConfig(**settings | changes)


def batch(device, seqlens=(66, 1, 9)):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(seqlens)) < torch.tensor(seqlens)[:, None]
    mask[0, 5:9] = False  # a hole
    ids = torch.randint(1, 97, mask.shape, generator=generator)
    segments = (torch.arange(max(seqlens)) > 20).long().expand_as(mask)
    labels = torch.where(mask & (torch.rand(mask.shape, generator=generator) < 0.3), ids, -100)
    named = {"input_ids": ids * mask, "attention_mask": mask.long(), "token_type_ids": segments, "labels": labels}
    return {name: tensor.to(device) for name, tensor in named.items()}, mask


class CountLaunches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastbert":
            name = func._schema.name.split("::")[1]
            self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches():
    """Counts the kernels' operators that run, so that a silent fallback cannot pass."""
    with CountLaunches() as mode:
        yield mode.seen


@pytest.mark.parametrize("padded_rows", [False, True], ids=["packed", "label-on-padding"])
def test_pretraining_step_equals_transformers(device, launches, padded_rows):
    torch.manual_seed(0)
    reference = transformers.BertForPreTraining(tiny_config()).to(device)
    fast = fastbert.BertForPreTraining(tiny_config()).to(device)
    fast.load_state_dict(reference.state_dict())
    inputs, mask = batch(device)
    inputs["next_sentence_label"] = torch.tensor([0, 1, 1], device=device)
    if padded_rows:
        inputs["labels"][1, 40] = 7  # padding: transformers takes its loss there
    expected, got = reference(**inputs), fast(**inputs)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.prediction_logits[mask], expected.prediction_logits[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.seq_relationship_logits, expected.seq_relationship_logits, rtol=1e-4, atol=1e-5)
    expected.loss.backward()
    got.loss.backward()
    reference_named = dict(reference.named_parameters())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference_named[name].grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ("embedding_fwd", "attention_fwd", "attention_bwd", "layer_norm_fwd", "layer_norm_bwd"):
        assert launches.get(name), f"{name} never ran: {launches}"


def test_fused_masked_lm_loss_equals_transformers(device, launches):
    torch.manual_seed(0)
    reference = transformers.BertForMaskedLM(tiny_config()).to(device)
    fast = fastbert.BertForMaskedLM(tiny_config()).to(device)
    fast.load_state_dict(reference.state_dict())
    inputs, _ = batch(device, seqlens=(30, 12))
    expected, got = reference(**inputs), fast(**inputs, return_logits=False)
    assert got.logits is None
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)
    expected.loss.backward()
    got.loss.backward()
    reference_named = dict(reference.named_parameters())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference_named[name].grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(name.startswith("cross_entropy") for name in launches), f"cross_entropy never ran: {launches}"


def test_causal_decoder_equals_transformers(device):
    torch.manual_seed(0)
    config = tiny_config(is_decoder=True, use_cache=False)
    reference, fast = transformers.BertLMHeadModel(config).to(device), fastbert.BertLMHeadModel(config).to(device)
    fast.load_state_dict(reference.state_dict())
    inputs, mask = batch(device, seqlens=(24, 9))
    expected, got = reference(**inputs), fast(**inputs)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.logits[mask], expected.logits[mask], rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_by_the_kernels_and_repeats(device):
    """The same seed gives the same loss and gradients; another seed others; checkpointing changes nothing."""
    config = tiny_config(num_hidden_layers=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    torch.manual_seed(0)
    model = fastbert.BertForMaskedLM(config).to(device).train()
    inputs, _ = batch(device, seqlens=(20, 9))

    def step(seed):
        model.zero_grad()
        torch.manual_seed(seed)
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), model.bert.encoder.layer[0].attention.self.query.weight.grad.clone()

    (loss, gradient), (again, gradient_again), (other, _) = step(1), step(1), step(2)
    assert torch.equal(loss, again)
    assert torch.equal(gradient, gradient_again)
    assert loss != other
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed, gradient_checkpointed = step(1)
    assert torch.equal(loss, checkpointed)
    assert torch.equal(gradient, gradient_checkpointed)


def test_the_triton_side_is_forced_here():
    assert resolve_backend(torch.empty(0)) == "triton" or torch.cuda.is_available()
