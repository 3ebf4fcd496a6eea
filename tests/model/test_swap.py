"""accelerate and restore: the swap in place, on bare models and in every wrapper."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

import fastbert
from fastbert import accelerate, explain, restore
from tests.model.parity import (
    HEADS,
    HEADS_AND_DECODER,
    MODEL,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    at_real_tokens,
    config_for,
    gradients,
    labels_for,
    make_batch,
    pair,
    projection,
    quiet_transformers,
    randomise,
    snapshot,
)


def fresh(head=MODEL, **changes):
    """(transformers' model, an equal one to be accelerated)."""
    reference, _ = pair(head, **changes)
    return reference, copy.deepcopy(reference)


def compare(head, reference, model, pattern="right", backward=True):
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch))
    expected, actual = reference(**inputs), model(**inputs)
    assert_same_outputs(actual, expected, batch.flat_real)
    if backward:
        scalars = [out.loss if out.get("loss") is not None else projection(out, batch.flat_real) for out in (actual, expected)]
        assert_same_gradients(gradients(model, scalars[0]), gradients(reference, scalars[1]))


def is_fast(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("fastbert") for module in model.modules())


@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_accelerate_and_restore(head):
    reference, model = fresh(head)
    before, keys = snapshot(model), list(model.state_dict())
    assert accelerate(model) is model
    assert is_fast(model)
    assert isinstance(model, head.reference)
    assert isinstance(model.base_model, fastbert.BertModel)
    during = snapshot(model)
    assert {k: v for k, v in during.items() if k.startswith("parameter")} == {
        k: v for k, v in before.items() if k.startswith("parameter")
    }
    for name, entry in during.items():
        if not name.startswith("parameter"):
            assert entry[1] == before[name][1], f"accelerate left something on {name or 'the model'}"
    assert list(model.state_dict()) == keys
    compare(head, reference, model)
    assert accelerate(model) is model
    assert snapshot(model) == during
    assert restore(model) is model
    assert not is_fast(model)
    assert {k: v[0] for k, v in snapshot(model).items() if isinstance(v, tuple)} == {
        k: v[0] for k, v in before.items() if isinstance(v, tuple)
    }
    compare(head, reference, model)
    assert restore(model) is model
    accelerate(model)
    compare(head, reference, model)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_an_accelerated_model_equals_one_of_our_own(head):
    _, model = fresh(head)
    _, fast = pair(head)
    accelerate(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in fast.modules()]
    batch = make_batch("holes", head)
    assert_same_outputs(model(**batch.inputs()), fast(**batch.inputs()), None, tolerance=0.0)


def test_our_own_classes_can_be_restored():
    reference, fast = pair(SEQUENCE)
    classes = [type(module) for module in fast.modules()]
    restore(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in reference.modules()]
    compare(SEQUENCE, reference, fast)
    accelerate(fast)
    assert [type(module) for module in fast.modules()] == classes


def test_mode_hooks_and_gradients_stay():
    _, model = fresh(TOKEN)
    calls = []
    model.train()
    model.bert.pooler_hook = "an attribute of the user's"
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda *args: calls.append(1))
    batch = make_batch("right")
    model(**batch.inputs(**labels_for(TOKEN, batch))).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    accelerate(model)
    assert model.training
    assert model.bert.encoder.layer[2].training
    assert model.bert.pooler_hook == "an attribute of the user's"
    assert all(parameter.grad is grads[name] for name, parameter in model.named_parameters())
    model(**batch.inputs())
    assert len(calls) == 2
    handle.remove()


def test_an_optimizer_made_before_still_trains_the_model():
    reference, model = fresh(SEQUENCE)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (reference, model)]
    accelerate(model)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(SEQUENCE, batch))
    for _ in range(3):
        for m, optimizer in zip((reference, model), optimizers):
            optimizer.zero_grad()
            m(**inputs).loss.backward()
            optimizer.step()
    for (name, parameter), wanted in zip(model.named_parameters(), reference.parameters()):
        assert_close(name, parameter, wanted, 1e-4)


def test_saving_an_accelerated_model(tmp_path):
    reference, model = fresh(SEQUENCE)
    reference.save_pretrained(tmp_path / "reference")
    accelerate(model).save_pretrained(tmp_path / "fast")
    for path in sorted((tmp_path / "reference").iterdir()):
        assert (tmp_path / "fast" / path.name).read_bytes() == path.read_bytes(), path.name
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "fast")
    compare(SEQUENCE, reference, again.eval())
    assert type(again) is transformers.BertForSequenceClassification


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_of_an_accelerated_model(make):
    reference, model = fresh(SEQUENCE)
    twin = make(accelerate(model))
    assert is_fast(twin)
    compare(SEQUENCE, reference, twin)
    restore(model)
    assert is_fast(twin)
    compare(SEQUENCE, reference, restore(twin))


def test_output_capture_after_the_swap():
    """transformers registers what a class can record when it is built; a swapped class was never built."""
    reference, model = fresh(MODEL, attn_implementation="eager")
    # `fresh` has built one on the way
    transformers.utils.output_capturing._CAN_RECORD_REGISTRY.pop(str(fastbert.BertModel), None)
    batch = make_batch("right")
    inputs = batch.inputs(output_hidden_states=True, output_attentions=True)
    reference_first = reference(**inputs)
    assert_same_outputs(accelerate(model)(**inputs), reference_first, batch.real)
    _, again = fresh(MODEL, attn_implementation="eager")
    again(**inputs)  # hooks installed before the swap
    assert_same_outputs(accelerate(again)(**inputs), reference_first, batch.real)
    assert_same_outputs(restore(again)(**inputs), reference_first, batch.real)


def relative(name: str, **changes) -> nn.Module:
    """A model of another architecture with layers of its own."""
    config = {key: value for key, value in config_for().to_dict().items() if key != "model_type"}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config | changes))


# ---- wrappers -----------------------------------------------------------------------------------------------------------


class Pooling(nn.Module):
    """A user's model around a bare BertModel, which has no name of BERT's in it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"left": encoder})
        self.project = nn.Linear(48, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.towers["left"](input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(hidden.dtype)
        return self.project((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))


class Answering(nn.Sequential):
    def forward(self, input_ids, attention_mask):
        return self[1](self[0](input_ids, attention_mask=attention_mask).pooler_output)


@pytest.mark.parametrize("build", [Pooling, lambda encoder: Answering(encoder, nn.Linear(48, 3))], ids=["dict", "sequential"])
def test_inside_a_users_module(build):
    reference, other = fresh(MODEL)
    torch.manual_seed(0)
    expected_model = build(reference)
    model = build(other)
    model.load_state_dict(expected_model.state_dict())
    parameters = list(model.parameters())
    assert accelerate(model) is model
    assert any(isinstance(module, fastbert.BertModel) for module in model.modules())
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    batch = make_batch("right")
    outs = [m(batch.input_ids, batch.mask) for m in (model, expected_model)]
    assert_close("output", *outs)
    assert_same_gradients(*(gradients(m, out.square().sum()) for m, out in zip((model, expected_model), outs)))
    restore(model)
    assert not is_fast(model)


def test_two_towers_sharing_one_encoder():
    reference, shared = fresh(MODEL)
    model = nn.ModuleDict({"query": shared, "document": shared})
    accelerate(model)
    assert model["query"] is model["document"] is shared
    compare(MODEL, reference, model["document"])


def test_a_subclass_of_the_users_own_keeps_its_forward():
    class MultiSample(transformers.BertForSequenceClassification):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    with quiet_transformers():
        model = randomise(MultiSample(config_for(SEQUENCE))).eval()
    batch = make_batch("right")
    expected = model(**batch.inputs())
    accelerate(model)
    assert isinstance(model, MultiSample)
    assert isinstance(model.bert, fastbert.BertModel)
    assert_same_outputs(model(**batch.inputs()), expected, batch.real)
    labels = labels_for(SEQUENCE, batch)
    loss = model(**batch.inputs(**labels)).loss
    restore(model)
    assert_close("loss", loss, model(**batch.inputs(**labels)).loss)


def test_a_subclass_whose_loss_reads_padding_is_not_silently_changed():
    """The exact type of its head is not transformers' own, yet its loss is."""

    class TokenLoss(transformers.BertForTokenClassification):
        pass

    model = randomise(TokenLoss(config_for(TOKEN))).eval()
    batch = make_batch("right")
    inputs = batch.inputs(labels=torch.randint(0, 4, batch.real.shape))
    expected = model(**inputs).loss
    accelerate(model)
    assert_close("loss", model(**inputs).loss, expected)


@pytest.mark.parametrize("order", ["peft_then_accelerate", "accelerate_then_peft"])
def test_inside_a_peft_model(order):
    from peft import LoraConfig, get_peft_model

    models = []
    for model, swapped in zip(fresh(SEQUENCE), (False, True)):
        if swapped and order == "accelerate_then_peft":
            accelerate(model)
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False, lora_dropout=0.0))
        if swapped and order == "peft_then_accelerate":
            assert accelerate(model) is model
        models.append(model.eval())
    reference, model = models
    assert is_fast(model)
    compare(SEQUENCE, reference, model)
    restore(model)
    assert not is_fast(model)
    compare(SEQUENCE, reference, model)


@pytest.mark.parametrize("name", ["DPRQuestionEncoder", "DPRReader"])
def test_bert_inside_another_architecture(name):
    """Dense passage retrieval holds a plain BertModel; it is found by its type."""
    torch.manual_seed(0)
    library = getattr(transformers, name)
    model = randomise(
        library(transformers.DPRConfig(**{k: v for k, v in config_for().to_dict().items() if k != "model_type"}))
    ).eval()
    batch = make_batch("right")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask}
    expected = model(**inputs)
    accelerate(model)
    assert is_fast(model)
    actual = model(**inputs)
    for key in expected.keys():
        assert_close(key, at_real_tokens(actual[key], batch.real), at_real_tokens(expected[key], batch.real))
    restored = restore(copy.deepcopy(model))
    expected, actual = (m(**inputs, output_hidden_states=True) for m in (restored, model))
    assert list(actual.keys()) == list(expected.keys())
    if "hidden_states" in expected.keys():
        assert_same_outputs(actual.hidden_states, expected.hidden_states, batch.real)


def test_an_encoder_decoder():
    with quiet_transformers():
        model = transformers.EncoderDecoderModel(
            encoder=transformers.BertModel(config_for()),
            decoder=transformers.BertLMHeadModel(config_for(is_decoder=True, add_cross_attention=True)),
        )
    randomise(model).eval()
    batch = make_batch("right")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask, "decoder_input_ids": batch.input_ids}
    expected = model(**inputs).logits
    accelerate(model)
    assert isinstance(model.encoder, fastbert.BertModel)
    assert_close("logits", model(**inputs).logits, expected)


def test_models_spread_by_a_device_map(tmp_path):
    """accelerate's hooks bind a module's forward; the swap must reach through them, both ways."""
    pair(TOKEN)[0].save_pretrained(tmp_path)
    device_map = {"bert.embeddings": "cpu", "bert.encoder": "cpu", "classifier": "disk"}
    options = {"device_map": device_map, "offload_folder": tmp_path / "offload"}
    model = transformers.BertForTokenClassification.from_pretrained(tmp_path, **options).eval()
    assert hasattr(model, "_hf_hook")
    batch = make_batch("right")
    with torch.no_grad():
        expected = model(**batch.inputs())
        accelerate(model)
        assert_same_outputs(model(**batch.inputs()), expected, batch.real)
        assert model(**batch.inputs(), output_hidden_states=True).hidden_states[-1][~batch.real].abs().max() == 0
        restore(model)
        assert_same_outputs(model(**batch.inputs()), expected, None)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(3, 3),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        lambda: relative("Roberta"),
        lambda: relative("Electra", embedding_size=48),
        lambda: relative("DistilBert", dim=48, n_heads=2, hidden_dim=96),
        lambda: config_for(),
        lambda: transformers.BertModel,
        lambda: "bert-base-uncased",
        lambda: None,
    ],
    ids=["linear", "sequential", "roberta", "distilbert", "electra", "config", "class", "name", "none"],
)
@pytest.mark.parametrize("function", [accelerate, restore, explain])
def test_what_is_not_bert_is_refused_by_type(function, build):
    model = build()
    name = type(model).__name__
    with pytest.raises(
        TypeError, match=rf"{function.__name__}.*BertModel.*{name}|{function.__name__}.*torch\.nn\.Module.*{name}"
    ):
        function(model)


def test_a_roberta_beside_a_bert_is_left_alone():
    roberta = relative("Roberta")
    classes = [type(module) for module in roberta.modules()]
    _, bert = fresh(MODEL)
    both = nn.ModuleList([roberta, bert])
    accelerate(both)
    assert [type(module) for module in roberta.modules()] == classes
    assert is_fast(bert)
