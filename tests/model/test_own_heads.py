"""Users' own heads on BertPreTrainedModel: packed, and in all else what they are on transformers' BertPreTrainedModel."""

import copy
import functools
import json
import pickle

import pytest
import torch
import transformers
from torch import nn

import fastbert
import fastbert.modeling_bert
from tests.model.parity import (
    CHOICE,
    HEADS,
    MASKED_LM,
    MODEL,
    NEXT_SENTENCE,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_gradients,
    at_real_tokens,
    config_for,
    gradients,
    labels_for,
    make_batch,
    pair,
    quiet_transformers,
    randomise,
    recorded_log,
)

LIBRARIES = {"fastbert": fastbert, "transformers": transformers}


class Tagger:
    """A tag per token, from the last layer and the first token's pooled state."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = self.library.BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.head = nn.Linear(2 * config.hidden_size, 5)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        outputs = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        pooled = outputs.pooler_output[:, None].expand_as(outputs.last_hidden_state)
        return self.head(self.dropout(torch.cat([outputs.last_hidden_state, pooled], -1)))


class Scorer:
    """A score per word at every token, by the word embeddings; keeps no pooler."""

    _tied_weights_keys = {"decoder.weight": "bert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.bert = self.library.BertModel(config, add_pooling_layer=False)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.decoder

    def set_output_embeddings(self, new):
        self.decoder = new

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        outputs = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self.decoder(outputs.last_hidden_state)


class Towers:
    """Two encoders, neither named as the base model is, one of them by an Auto class; what is read is a row per sequence."""

    def __init__(self, config):
        super().__init__(config)
        self.left = self.library.BertModel(config)
        self.right = transformers.AutoModel.from_config(copy.deepcopy(config))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return torch.cat([self.left(input_ids, **inputs).pooler_output, self.right(input_ids, **inputs).pooler_output], -1)


@functools.cache
def written(source: type, base: str = "transformers", model: str = "transformers") -> type:
    """The source above as a head whose BertPreTrainedModel and BertModel were imported from these libraries."""
    place = f"{source.__name__}_{base}_{model}"
    names = {"library": LIBRARIES[model], "__module__": __name__, "__qualname__": place}
    globals()[place] = type(source.__name__, (source, LIBRARIES[base].BertPreTrainedModel), names)  # where pickle looks
    return globals()[place]


every_source = pytest.mark.parametrize("source", [Tagger, Scorer, Towers], ids=lambda source: source.__name__)
every_model = pytest.mark.parametrize("model", LIBRARIES)


def own_pair(source, base="fastbert", model="fastbert", **changes):
    reference = randomise(written(source)(config_for(**changes)))
    fast = written(source, base, model)(config_for(**changes))
    fast.load_state_dict(reference.state_dict())
    return reference.eval(), fast.eval()


def assert_same(fast, reference, inputs, real):
    """Outputs at real tokens, and the gradient of every parameter."""
    outputs = [model(**inputs) for model in (fast, reference)]
    outputs = [output if output.dim() == 2 else output[real] for output in outputs]
    assert_close("output", *outputs)
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(5))
    assert_same_gradients(*[gradients(model, (output * weights).sum()) for model, output in zip((fast, reference), outputs)])


def ways(model) -> set[str]:
    return {value for name, value in fastbert.explain(model).notes.items() if name.startswith("last call")}


def test_a_head_of_transformers_with_our_base_behind_it():
    class Mixed(transformers.BertForSequenceClassification, fastbert.BertPreTrainedModel):
        pass

    model = fastbert.accelerate(Mixed(config_for()))
    assert isinstance(model, fastbert.BertForSequenceClassification)
    assert Mixed in type(model).__mro__
    assert type(fastbert.restore(model)) is Mixed


@every_model
@every_source
@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "holes"])
def test_a_head_of_ones_own_runs_packed_and_gives_transformers_answers(source, model, pattern):
    reference, fast = own_pair(source, model=model)
    batch = make_batch(pattern)
    assert_same(fast, reference, batch.inputs(), batch.real)
    assert all(way.startswith("packed") for way in ways(fast)), ways(fast)
    assert not any("not swapped" in decision.reason for decision in fastbert.explain(fast).decisions)


def test_our_model_in_a_head_of_transformers_runs_packed():
    reference, fast = own_pair(Tagger, base="transformers", model="fastbert")
    batch = make_batch("right")
    assert_same(fast, reference, batch.inputs(), batch.real)
    assert all(way.startswith("packed") for way in ways(fast))


def test_a_head_that_never_calls_post_init_keeps_the_model_it_built():
    class Bare(fastbert.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = transformers.BertModel(config)

    assert "not swapped: see fastbert.accelerate" in str(fastbert.explain(Bare(config_for())))


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_model_is_an_instance_of_both_libraries_base(head):
    reference, fast = pair(head)
    for base in (fastbert.BertPreTrainedModel, transformers.BertPreTrainedModel, transformers.PreTrainedModel):
        assert isinstance(fast, base)
        assert isinstance(fast.base_model, base)
    assert isinstance(fastbert.accelerate(reference), fastbert.BertPreTrainedModel)
    fastbert.restore(reference)
    assert not isinstance(reference, fastbert.BertPreTrainedModel)


@every_model
@every_source
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_checkpoints_of_every_head_load_with_the_same_report(head, source, model, tmp_path):
    saved, _ = pair(head)
    saved.save_pretrained(tmp_path)
    reports = []
    for cls in (written(source), written(source, "fastbert", model)):
        torch.manual_seed(3)
        with recorded_log() as messages:
            loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
        report = {key: sorted(map(str, value)) for key, value in info.items()}
        # Rows of a table come in the order of a set.
        lines = [sorted(line for line in message.splitlines()) for message in messages]
        reports.append((loaded, report, lines))
    (reference, expected, expected_lines), (fast, report, lines) = reports
    assert report == expected
    assert lines == expected_lines
    assert report["missing_keys"], "a head of its own cannot be in a checkpoint of another"
    for (name, value), (other, weight) in zip(reference.state_dict().items(), fast.state_dict().items()):
        assert name == other
        assert torch.equal(value, weight), name
    if source is not Towers:
        embeddings = saved.base_model.embeddings.word_embeddings.weight
        assert torch.equal(fast.bert.embeddings.word_embeddings.weight, embeddings)


@every_model
@every_source
def test_files_and_round_trip(source, model, tmp_path):
    reference, fast = own_pair(source, model=model)
    reference.save_pretrained(tmp_path / "reference")
    fast.save_pretrained(tmp_path / "fast")
    for path in (tmp_path / "reference").iterdir():
        assert (tmp_path / "fast" / path.name).read_bytes() == path.read_bytes(), path.name
    assert json.loads((tmp_path / "fast" / "config.json").read_text())["architectures"] == [source.__name__]
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "fast")) is type(fast).config_class is fastbert.BertConfig
    loaded, info = type(fast).from_pretrained(tmp_path / "reference", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    batch = make_batch("right")
    assert_same(loaded, reference, batch.inputs(), batch.real)
    assert all(way.startswith("packed") for way in ways(loaded))


@every_model
def test_tied_weights(model, tmp_path):
    pair(MASKED_LM)[0].save_pretrained(tmp_path)
    for fast in (own_pair(Scorer, model=model)[1], written(Scorer, "fastbert", model).from_pretrained(tmp_path)):
        assert fast.decoder.weight is fast.bert.embeddings.word_embeddings.weight
        with quiet_transformers():
            fast.resize_token_embeddings(130)
        assert fast.decoder.weight is fast.bert.embeddings.word_embeddings.weight
        assert fast.decoder.weight.shape[0] == 130


@every_model
@every_source
def test_gradient_checkpointing(source, model):
    reference, fast = own_pair(source, model=model)
    for each in (reference, fast):
        each.train()
        each.gradient_checkpointing_enable()
    assert fast.is_gradient_checkpointing
    layers, calls = [part for part in fast.modules() if isinstance(part, fastbert.BertLayer)], []
    for layer in layers:
        inner = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, inner=inner, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    batch = make_batch("right")
    assert_same(fast, reference, batch.inputs(), batch.real)
    assert len(calls) == len(layers)


@every_model
@every_source
def test_copies_and_pickles(source, model):
    reference, fast = own_pair(source, model=model)
    batch = make_batch("right")
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is type(fast)
        assert_same(copied, reference, batch.inputs(), batch.real)
        assert all(way.startswith("packed") for way in ways(copied))


@every_model
@every_source
def test_restore_and_accelerate(source, model):
    reference, fast = own_pair(source, model=model)
    batch = make_batch("right")
    fastbert.restore(fast)
    assert not any(isinstance(part, fastbert.BertModel | fastbert.BertLayer) for part in fast.modules())
    assert_same(fast, reference, batch.inputs(), batch.real)
    fastbert.accelerate(fast)
    assert_same(fast, reference, batch.inputs(), batch.real)
    assert all(way.startswith("packed") for way in ways(fast))


class Narrow(nn.Module):
    """An encoder of a user's own in the place of `bert`, with the arguments that transformers' heads pass and no others."""

    def __init__(self, bert):
        super().__init__()
        self.inner = bert

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None, return_dict=None
    ):
        return self.inner(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True)


@pytest.mark.parametrize("head", [NEXT_SENTENCE, SEQUENCE, CHOICE, TOKEN, QUESTION, PRETRAINING], ids=str)
def test_a_module_in_place_of_the_encoder_gets_what_transformers_passes(head):
    reference, fast = pair(head)
    batch = make_batch("right", head)
    labels = labels_for(head, batch)
    reference.bert, fast.bert = Narrow(reference.bert), Narrow(fast.bert)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    for model in (fast, compiled):
        with torch.no_grad():
            actual, expected = model(**batch.inputs()), reference(**batch.inputs())
        names = ("start_logits", "end_logits") if head is QUESTION else tuple(expected)
        for name in names:
            assert_close(name, *(at_real_tokens(one[name], batch.real) for one in (actual, expected)))
    if head.pooled and head is not PRETRAINING:
        assert_close("loss", fast(**batch.inputs(**labels)).loss, reference(**batch.inputs(**labels)).loss)
    else:
        with pytest.raises(TypeError, match=r"expected a forward of Narrow that takes \*\*kwargs"):
            fast(**batch.inputs(**labels))
    fast.bert.inner = fastbert.restore(fast.bert.inner)  # nobody inside to be told
    assert_close("loss", fast(**batch.inputs(**labels)).loss, reference(**batch.inputs(**labels)).loss)


def test_a_layer_of_its_own_is_transformers_layer():
    torch.manual_seed(0)
    config = config_for()
    config._attn_implementation = "sdpa"
    reference, fast = transformers.BertLayer(config).eval(), fastbert.BertLayer(config).eval()
    fast.load_state_dict(reference.state_dict())
    states = torch.randn(2, 5, config.hidden_size)
    assert torch.equal(fast(states), reference(states))


def test_parts_of_modeling_bert_work_together():
    """A head written from BERT's parts, as some are, with the encoder's layers in it."""
    parts = fastbert.modeling_bert

    class FromParts(parts.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings, self.encoder = parts.BertEmbeddings(config), parts.BertEncoder(config)
            self.pooler = parts.BertPooler(config)
            self.post_init()

        def forward(self, input_ids):
            return self.pooler(self.encoder(self.embeddings(input_ids)).last_hidden_state)

    reference, _ = pair(MODEL)
    fast = FromParts(config_for()).eval()
    fast.load_state_dict(reference.state_dict())
    ids = make_batch("no_mask").input_ids
    assert_close("pooled", fast(ids), reference(ids).pooler_output)
