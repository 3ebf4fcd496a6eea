"""What padding positions hold: zeros by default, transformers' values with padding="exact", and a word where it matters."""

import copy
import pickle
import warnings
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch import nn

import fastbert
from fastbert.model.span_logits import fill_padding_logits
from tests.model.parity import (
    HEADS_AND_DECODER,
    LM_DECODER,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_padding_is_below,
    assert_same_gradients,
    assert_same_outputs,
    assert_same_run,
    config_for,
    gradients,
    labels_for,
    make_batch,
    pair,
    quiet_transformers,
    randomise,
)


def exact(fast):
    return fastbert.accelerate(fast, padding="exact")


@contextmanager
def said():
    """The warnings about padding."""
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(one.message) for one in caught if "padding=" in str(one.message)]


# padding="exact"


@pytest.mark.parametrize("pattern", ["no_mask", "full", "right", "left", "holes", "empty_row", "all_empty"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_exact_is_transformers_everywhere(head, pattern):
    reference, fast = pair(head)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(output_hidden_states=True)
    if head is LM_DECODER:
        inputs["use_cache"] = False
    assert_same_run(head, reference, exact(fast), inputs, batch.real, everywhere=True)
    if head is not LM_DECODER:
        assert fastbert.explain(fast).notes["padding"] == "exact (padding='exact')"


@pytest.mark.parametrize("head", [TOKEN, QUESTION, MASKED_LM, PRETRAINING], ids=str)
def test_exact_with_labels(head):
    reference, fast = pair(head)
    batch = make_batch("right")
    assert_same_run(head, reference, exact(fast), batch.inputs(**labels_for(head, batch)), batch.real, everywhere=True)


def test_exact_keeps_the_layers_packed_and_says_so():
    _, fast = pair()
    exact(fast)(**make_batch("right").inputs())
    assert fastbert.explain(fast).notes["last call"] == "every position is a row; padding is exact (padding='exact')"
    fast(**make_batch("full").inputs())
    assert fastbert.explain(fast).notes["last call"] == "packed; no padding in the batch"


def test_the_option_of_the_classes_is_in_no_checkpoint(tmp_path):
    reference, _ = pair(TOKEN)
    reference.save_pretrained(tmp_path / "reference")
    fast = fastbert.BertForTokenClassification.from_pretrained(tmp_path / "reference", padding="exact")
    batch = make_batch("right")
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), None)
    fast.save_pretrained(tmp_path / "fast")
    assert (tmp_path / "fast/config.json").read_text().count("padding") == 0
    again = fastbert.BertForTokenClassification.from_pretrained(tmp_path / "fast")
    assert fastbert.explain(again).notes["padding"] == "zeros (the default)"
    for fast in (
        fastbert.BertModel(config_for(), padding="exact"),
        fastbert.BertModel(config_for(), add_pooling_layer=False, padding="exact"),
        *(head.fast(config_for(head), padding="exact") for head in HEADS_AND_DECODER),
    ):
        for copied in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert fastbert.explain(copied).notes["padding"] == "exact (padding='exact')"


def test_accelerate_sets_it_and_restore_forgets_it():
    reference, _ = pair()
    batch = make_batch("left")
    expected = reference(**batch.inputs())
    keys, before = list(reference.state_dict()), set(reference.__dict__)
    fastbert.accelerate(reference, padding="exact")
    assert_same_outputs(reference(**batch.inputs()), expected, None)
    fastbert.accelerate(reference)  # a second call changes nothing
    assert_same_outputs(reference(**batch.inputs()), expected, None)
    assert list(reference.state_dict()) == keys
    fastbert.accelerate(reference, padding="zeros")
    assert reference(**batch.inputs()).last_hidden_state[~batch.real].abs().max() == 0
    fastbert.restore(reference)
    assert set(reference.__dict__) == before


@pytest.mark.parametrize("padding", ["none", 1])
def test_another_value_is_refused(padding):
    for make in (fastbert.BertModel, fastbert.BertForQuestionAnswering):
        with pytest.raises(ValueError, match=rf"{make.__name__}: expected padding 'zeros' or 'exact', got {padding!r}"):
            make(config_for(), padding=padding)
    with pytest.raises(ValueError, match=rf"accelerate: expected padding 'zeros' or 'exact', got {padding!r}"):
        fastbert.accelerate(pair()[0], padding=padding)


@pytest.mark.parametrize("head", [MODEL, QUESTION], ids=str)
def test_compiled_code_follows_the_option(head):
    """The compiler keeps the code of a forward for every model of a class, so it must ask again what padding holds."""
    batch = make_batch("right", head)
    reference, fast = pair(head)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    expected, zeros = reference(**batch.inputs()), fast(**batch.inputs())
    assert_same_outputs(compiled(**batch.inputs()), zeros, None)
    exact(fast)
    assert_same_outputs(compiled(**batch.inputs()), expected, None)
    fastbert.accelerate(fast, padding="zeros")
    assert_same_outputs(compiled(**batch.inputs()), zeros, None)
    other = exact(pair(head)[1])
    assert_same_outputs(torch.compile(other, backend="eager", fullgraph=True)(**batch.inputs()), expected, None)


def test_exact_under_another_attention_is_transformers_path():
    reference, fast = pair(attn_implementation="eager")
    batch = make_batch("empty_row")
    assert_same_outputs(exact(fast)(**batch.inputs()), reference(**batch.inputs()), None)


# Readers of padding: each of these took zeros without a word


class Tagger(nn.Module):
    """A recurrent network on top of an encoder, as hundreds of repositories have it."""

    def __init__(self, bert, top):
        super().__init__()
        self.bert, self.top = bert, top
        self.out = nn.Linear(16, 4)

    def forward(self, **inputs):
        states = self.bert(**inputs).last_hidden_state
        if isinstance(self.top, nn.Conv1d):
            return self.out(self.top(states.transpose(1, 2)).transpose(1, 2))
        if isinstance(self.top, nn.MultiheadAttention):
            return self.out(self.top(states, states, states)[0][..., :16])
        return self.out(self.top(states)[0])


TOPS = {
    "LSTM": lambda: nn.LSTM(48, 8, bidirectional=True, batch_first=True),
    "GRU": lambda: nn.GRU(48, 16, batch_first=True),
    "Conv1d": lambda: nn.Conv1d(48, 16, 3, padding=1),
    "MultiheadAttention": lambda: nn.MultiheadAttention(48, 2, batch_first=True),
}


@pytest.mark.parametrize("name", TOPS)
def test_accelerate_sees_who_reads_token_states(name):
    reference, _ = pair()
    torch.manual_seed(0)
    model = Tagger(reference, TOPS[name]()).eval()
    batch = make_batch("right")
    expected = model(**batch.inputs())
    before = gradients(model, expected.sum())
    with said() as messages:
        fastbert.accelerate(model)
        fastbert.accelerate(model)
    assert len(messages) == 1
    assert f"the module {name} reads token states" in messages[0]
    with said() as messages:
        actual = model(**batch.inputs())
    assert_close("scores", actual, expected)
    assert_same_gradients(gradients(model, actual.sum()), before)
    assert messages == []
    assert fastbert.explain(model).notes["padding"].startswith(f"exact (the module {name}")


class Summary(nn.Module):
    """One vector per sequence by a module that does not know the mask."""

    def __init__(self, bert, top, channels_first, name="top"):
        super().__init__()
        self.bert, self.channels_first, self.name = bert, channels_first, name
        self.add_module(name, top)

    def forward(self, **inputs):
        states = self.bert(**inputs).last_hidden_state
        out = getattr(self, self.name)(states.transpose(1, 2) if self.channels_first else states)
        return (out * states).sum(1) if self.name == "attention" else out.flatten(1)


SUMMARIES = {
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(1), True),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(1), True),
    "LPPool1d": (lambda: nn.LPPool1d(2, 3), True),
    "Flatten": (nn.Flatten, False),
    "GroupNorm": (lambda: nn.GroupNorm(2, 48), True),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(48), True),
    "attention": (lambda: nn.Sequential(nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 1), nn.Softmax(1)), False),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_accelerate_sees_who_sums_token_states_up(name):
    make, channels_first = SUMMARIES[name]
    torch.manual_seed(0)
    model = Summary(pair()[0], make(), channels_first, name if name == "attention" else "top").eval()
    batch = make_batch("right")
    with torch.no_grad(), said() as messages:
        expected = model(**batch.inputs())
        assert_close("summary", fastbert.accelerate(model)(**batch.inputs()), expected)
    assert len(messages) == 1
    assert f"the module {name} reads token states" in messages[0]


def test_a_head_of_ones_own_is_seen_too():
    """At inference nobody would warn: zeros under its LSTM would change the answers at real tokens."""

    def written(library, **option):
        class Recurrent(library.BertPreTrainedModel):
            def __init__(self, config):
                super().__init__(config)
                self.bert = library.BertModel(config, **option)
                self.lstm = nn.LSTM(config.hidden_size, 8, bidirectional=True, batch_first=True)
                self.post_init()

            def forward(self, **inputs):
                return self.lstm(self.bert(**inputs).last_hidden_state)[0]

        return Recurrent(config_for()).eval()

    reference = randomise(written(transformers))
    with said() as messages:
        fast = written(fastbert)
    fast.load_state_dict(reference.state_dict())
    assert len(messages) == 1
    assert "Recurrent: padding positions hold transformers' values (padding='exact'), since the module LSTM" in messages[0]
    batch = make_batch("right")
    with torch.no_grad():
        assert_close("states", fast(**batch.inputs()), reference(**batch.inputs()))
    with said() as messages:
        chosen = written(fastbert, padding="zeros")
    assert messages == []
    assert fastbert.explain(chosen).notes["padding"] == "zeros (padding='zeros')"


def test_the_users_choice_beats_what_accelerate_sees():
    model = Tagger(pair()[0], TOPS["LSTM"]())
    with said() as messages:
        fastbert.accelerate(model, padding="zeros")
        fastbert.accelerate(model)
        model(**make_batch("right").inputs())
    assert messages == []
    assert fastbert.explain(model).notes["padding"] == "zeros (padding='zeros')"


class HF_ColBERT(nn.Module):
    """Queries filled up with [MASK] tokens at attention_mask 0, whose states are compared as well."""

    def __init__(self, bert):
        super().__init__()
        self.bert, self.linear = bert, nn.Linear(48, 8, bias=False)

    def forward(self, **inputs):
        return nn.functional.normalize(self.linear(self.bert(**inputs).last_hidden_state), dim=-1)


def test_accelerate_knows_retrieval_models():
    model = HF_ColBERT(pair()[0]).eval()
    batch = make_batch("right")
    expected = model(**batch.inputs())
    with said() as messages:
        fastbert.accelerate(model)
    assert "the retrieval model HF_ColBERT reads token states" in messages[0]
    assert_close("query vectors", model(**batch.inputs()), expected)


def test_mask_tokens_at_padding_are_noticed_without_gradients():
    """Retrieval by a class of fastbert's inside a user's code: the input itself gives it away."""
    fast = fastbert.BertModel(config_for())
    ids = torch.tensor([[2, 7, 8, 3, 4, 4, 4, 4]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    with said() as messages, torch.no_grad():
        for _ in range(3):
            fast(ids, attention_mask=mask)
    assert len(messages) == 1
    assert "tokens other than padding are where attention_mask is 0" in messages[0]
    assert "padding='exact'" in messages[0]


def padded_batch():
    batch = make_batch("right")
    batch.input_ids[~batch.real] = 0
    return batch


def test_an_encoder_called_with_gradients_is_warned_of_once():
    _, fast = pair()
    batch = padded_batch()
    with said() as messages:
        with torch.no_grad():
            fast(**batch.inputs())
        fast(**make_batch("no_mask").inputs())
        assert messages == []
        for _ in range(3):
            fast(**batch.inputs())
    assert len(messages) == 1
    assert "called with gradients" in messages[0]


@pytest.mark.parametrize("head", [TOKEN, QUESTION, MASKED_LM, PRETRAINING], ids=str)
def test_a_token_head_trained_without_labels_is_warned_of_once(head):
    _, fast = pair(head)
    batch = padded_batch()
    fast.train()
    labels = labels_for(head, batch)
    with said() as messages:
        if head is not QUESTION:
            fast(**batch.inputs(**labels))
        fast.eval()(**batch.inputs())
        fast.train()
        with torch.no_grad():
            fast(**batch.inputs())
    assert messages == []
    with said() as messages:
        for _ in range(3):
            fast(**batch.inputs())
    assert len(messages) == 1
    assert "in training without labels" in messages[0]


def test_who_compiles_is_warned_while_it_compiles():
    _, fast = pair(num_hidden_layers=1)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    batch = padded_batch()
    with said() as messages:
        with torch.no_grad():
            compiled(**batch.inputs())
        assert messages == []
        for _ in range(3):
            compiled(**batch.inputs())
    assert len(messages) == 1
    assert "called with gradients" in messages[0]
    with said() as messages:
        fastbert.accelerate(fast, padding="zeros")
        compiled(**batch.inputs())
    assert messages == []


@pytest.mark.parametrize("choice", ["exact", "zeros"])
def test_who_has_chosen_is_not_warned(choice):
    _, fast = pair()
    fastbert.accelerate(fast, padding=choice)
    with said() as messages:
        fast(**make_batch("right").inputs())
    assert messages == []


def test_a_head_of_one_answer_a_sequence_is_not_warned():
    _, fast = pair(SEQUENCE)
    with said() as messages:
        fast.train()(**padded_batch().inputs())
    assert messages == []


def test_sentence_transformers_training_is_not_warned(tmp_path):
    """Its pooling respects the mask; a convolution of its own does not."""
    models = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    transformers.BertModel(config_for(vocab_size=32)).save_pretrained(tmp_path)

    def make(*between):
        body = models.Transformer(str(tmp_path))
        return SentenceTransformer(modules=[body, *between, models.Pooling(48 if not between else 16)], device="cpu")

    model = make()
    with said() as messages:
        fastbert.accelerate(model)
        features = model.preprocess(["a b c d", "h"])
        model(dict(features))["sentence_embedding"].sum().backward()
    assert messages == []
    assert fastbert.explain(model).notes["padding"].startswith("zeros (sentence-transformers reads states under the mask")
    model = make(models.CNN(48, 16, [3]))
    expected = model.encode(["a b c d", "h"])
    with said() as messages:
        fastbert.accelerate(model)
    assert len(messages) == 1
    torch.testing.assert_close(torch.tensor(model.encode(["a b c d", "h"])), torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_model_beside_the_encoder_is_not_around_it():
    """The attention of a vision tower reads no token states of BERT's."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, config_for(), projection_dim=8)
    with quiet_transformers():
        model = transformers.VisionTextDualEncoderModel(config)
    with said() as messages:
        fastbert.accelerate(model)
    assert messages == []


def test_an_own_loss_over_labels_at_padding():
    """The reported value: 1.1043 in place of 1.1085 with half the gradient."""
    reference, fast = pair(TOKEN)
    batch = make_batch("right")
    labels = torch.randint(0, 4, batch.real.shape, generator=torch.Generator().manual_seed(0))

    def loss(model):
        return nn.functional.cross_entropy(model(**batch.inputs()).logits.flatten(0, 1), labels.flatten())

    expected, actual = loss(reference), loss(exact(fast))
    assert_close("loss", actual, expected)
    assert_same_gradients(gradients(fast, actual), gradients(reference, expected))


# Logits of question answering


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1000.0, 60000.0])
def test_padding_loses_every_argmax_in_every_dtype(dtype, scale):
    torch.manual_seed(0)
    logits = (torch.randn(6, 20).clamp(-0.95, 0.95) * scale).to(dtype)
    padding = torch.rand(6, 20) < 0.5
    padding[0], padding[1] = True, False
    padding[2:, 3] = False
    filled = fill_padding_logits(logits, padding)
    assert filled.dtype == dtype
    assert filled.isfinite().all()
    assert torch.equal(filled[~padding], logits[~padding])
    for row, gone in zip(filled, padding):
        if gone.any() and not gone.all():
            assert row[gone].max() < row[~gone].min()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smoothed_and_distilled_losses_over_padding_stay_finite(dtype):
    reference, fast = pair(QUESTION, dtype=dtype)
    batch = make_batch("right")
    answers = torch.tensor([1, 2, 0, 3, 4])

    def losses(model, teacher):
        logits = model(**batch.inputs()).start_logits.float()
        smoothed = nn.functional.cross_entropy(logits, answers, label_smoothing=0.1)
        return smoothed, nn.functional.mse_loss(logits, teacher)

    with torch.no_grad():
        teacher = randomise(copy.deepcopy(fast), seed=3)(**batch.inputs()).start_logits.float()
    assert_padding_is_below(teacher, batch.real)
    for found, expected in zip(losses(fast, teacher), losses(reference, teacher)):
        assert found.isfinite()
        assert found < 100
        assert expected.isfinite()
    grads = gradients(fast, sum(losses(fast, teacher)))
    assert all(grad is None or grad.isfinite().all() for grad in grads.values())
    exactly = losses(exact(fast), teacher)[0]
    assert_close("smoothed loss", exactly, losses(reference, teacher)[0], 1e-5 if dtype == torch.float32 else 3e-2)


# Masks and types as transformers broadcasts them


def test_masks_and_types_of_fewer_dimensions():
    reference, fast = pair()
    batch = make_batch("full")
    row = torch.tensor([1] * 8 + [0] * 4)
    expected = reference(batch.input_ids, attention_mask=row.expand(5, 12), token_type_ids=row.expand(5, 12))
    real = row.expand(5, 12).bool()
    for mask in (row, row[None]):
        for types in (row, row[None]):
            actual = fast(batch.input_ids, attention_mask=mask, token_type_ids=types)
            assert_same_outputs(actual, expected, real)
    for types in (torch.tensor(1), torch.ones(5, 1, dtype=torch.int64), torch.ones(12, dtype=torch.int64)):
        assert_same_outputs(fast(batch.input_ids, token_type_ids=types), reference(batch.input_ids, token_type_ids=types), None)
    positions = torch.arange(12).flip(0)
    assert_same_outputs(
        fast(batch.input_ids, position_ids=positions, token_type_ids=row),
        reference(batch.input_ids, position_ids=positions, token_type_ids=row),
        None,
    )
    _, question = pair(QUESTION)
    logits = question(batch.input_ids, attention_mask=row).start_logits
    assert_padding_is_below(logits, real)
