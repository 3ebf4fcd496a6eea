"""`fastbert.compile`: buckets, ownership of outputs, and what goes to the model instead; graphs themselves on a GPU."""

import contextlib
import functools
import threading
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbert
from fastbert.deploy.buckets import DEFAULT_BUCKETS, Bucket
from fastbert.deploy.graphs import ON_CPU, BucketInputs, CompiledModel, GraphRunner
from tests.model.parity import assert_padding_is_below

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CLASSES = (
    "BertModel",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForPreTraining",
)
BUCKETS = (Bucket(24, 2), Bucket(48, 5), Bucket(96, 8))


class EagerRunner(BucketInputs):
    """As a graph: outputs live in buffers that the next call overwrites."""

    def __init__(self, model, bucket):
        super().__init__(model, bucket)
        self.outputs = self.forward()

    def run(self):
        found = self.forward()
        for name, value in found.items():
            self.outputs[name].copy_(value)
        return self.outputs


def make_model(name="BertModel", **values):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    labels = 2 if name == "BertForQuestionAnswering" else 3
    config = transformers.BertConfig(**sizes, max_position_embeddings=32, num_labels=labels, **values)
    return getattr(fastbert, name)(config).eval().to(DEVICE)


def bucketed(model, buckets=BUCKETS) -> CompiledModel:
    """Compiled, on a CPU with the buckets run without graphs."""
    return fastbert.compile(model, buckets) if GPU else CompiledModel(model, buckets, lambda one: EagerRunner(model, one))


def make_batch(lengths, seqlen, holes=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (len(lengths), seqlen), generator=g)
    mask = (torch.arange(seqlen) < torch.tensor(lengths)[:, None]).long()
    if holes:
        mask[:, 2] = 0
    types = torch.randint(0, 2, ids.shape, generator=g)
    return {name: value.to(DEVICE) for name, value in (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types))}


def assert_same(found, expected, mask):
    assert type(found) is type(expected)
    assert list(found) == list(expected)
    for name in found:
        one, other = found[name], expected[name]
        if one.shape[:2] == mask.shape and one.dim() > 1:
            real = mask.bool()
            if name in ("start_logits", "end_logits"):
                assert_padding_is_below(one, real)
            else:
                assert (one[~real] == 0.0).all()
            one, other = one[real], other[real]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("holes", [False, True])
@torch.no_grad()
def test_outputs_are_the_models(name, holes):
    model = make_model(name)
    compiled = bucketed(model)
    for lengths in ([7], [12, 12], [20, 9, 5], [3] * 8, [24]):
        batch = make_batch(lengths, max(lengths) + 2, holes)
        assert_same(compiled(**batch), model(**batch), batch["attention_mask"])
    assert sum(compiled.calls.values()) == 5
    assert not [key for key in compiled.calls if key.startswith("model")]


@functools.cache
def both():
    """One pair for all examples."""
    model = make_model()
    return model, bucketed(model)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_batch_goes_to_the_smallest_bucket_that_holds_it(lengths, seed):
    model, compiled = both()
    batch = make_batch(lengths, max(lengths), seed=seed)
    compiled.calls.clear()
    fitting = [one for one in BUCKETS if sum(lengths) <= one.tokens and len(lengths) <= one.sequences]
    assert_same(compiled(**batch), model(**batch), batch["attention_mask"])
    (key,) = compiled.calls
    expected = f"{min(fitting).tokens} tokens, {min(fitting).sequences} sequences" if fitting else "model: no bucket holds"
    assert key.startswith(expected)


@torch.no_grad()
def test_packed_calls_and_defaults():
    model = make_model()
    compiled = bucketed(model)
    batch = make_batch([9, 1, 14], 14)
    keep = batch["attention_mask"].bool()
    packed = {"input_ids": batch["input_ids"][keep], "token_type_ids": batch["token_type_ids"][keep]}
    bounds = {"cu_seqlens": torch.tensor([0, 9, 10, 24], dtype=torch.int32, device=DEVICE), "max_seqlen": 14}
    for given_inputs in (packed, {"input_ids": packed["input_ids"]}):
        found, expected = compiled(**given_inputs, **bounds), model(**given_inputs, **bounds)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)
    ids = batch["input_ids"][:1]
    states = compiled(ids, return_dict=False)
    assert isinstance(states, tuple)
    torch.testing.assert_close(states[0], model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    places = torch.arange(14, device=DEVICE).flip(0)[None]
    assert_same(compiled(ids, position_ids=places), model(ids, position_ids=places), torch.ones_like(ids))
    assert sum(compiled.calls.values()) == 4
    assert compiled.config is model.config
    assert compiled.buckets == BUCKETS


@torch.no_grad()
def test_outputs_are_the_callers_own():
    model = make_model("BertForSequenceClassification")
    compiled = bucketed(model)
    batch, other = make_batch([12, 7], 12), make_batch([3, 12], 12, seed=1)
    first = compiled(**batch)
    kept = {name: value.clone() for name, value in first.items()}
    second = compiled(**other)
    for name, value in first.items():
        assert torch.equal(value, kept[name])
        value.zero_()
        assert second[name].any()
    assert_same(compiled(**batch), model(**batch), batch["attention_mask"])


@torch.no_grad()
def test_a_capture_minds_its_own_thread_only(monkeypatch):
    """What other threads allocate meanwhile is legal; in CUDA's default mode it would end the capture with an error."""
    captures = []

    @contextlib.contextmanager
    def graph(cuda_graph, **options):
        captures.append(options)
        yield

    for name, value in (("graph", graph), ("CUDAGraph", mock.Mock), ("stream", contextlib.nullcontext)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    stream = mock.Mock(device=None)
    GraphRunner(make_model().cpu(), BUCKETS[0], pool=7, stream=stream)
    assert captures == [{"pool": 7, "stream": stream, "capture_error_mode": "thread_local"}]


def test_threads_take_turns():
    model = make_model()
    compiled = bucketed(model)
    batches = [make_batch([4 + place, 9], 12 + place, seed=place) for place in range(6)]
    expected = [model(**batch).last_hidden_state for batch in batches]
    wrong = []

    def work(place):
        with torch.no_grad():
            for _ in range(8):
                found = compiled(**batches[place]).last_hidden_state
                real = batches[place]["attention_mask"].bool()
                if not torch.allclose(found[real], expected[place][real], rtol=1e-4, atol=1e-5):
                    wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(compiled.calls.values()) == 48


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(output_hidden_states=True), "output_hidden_states cannot be given to a graph"),
        (dict(attention_mask=torch.ones(1, 1, 9, 9, dtype=torch.int64)), "the shapes are not those"),
        (dict(attention_mask=torch.tensor([[0] + [1] * 8])), "begins with padding"),
        (dict(input_ids=None, inputs_embeds=torch.zeros(1, 9, 32)), "inputs_embeds cannot be given"),
        (dict(input_ids=torch.full((9, 20), 5), attention_mask=None, token_type_ids=None), "no bucket holds so many"),
    ],
)
@torch.no_grad()
def test_what_no_graph_answers_goes_to_the_model_with_its_reason(change, reason):
    model = make_model(attn_implementation="eager")
    compiled = bucketed(model)
    inputs = make_batch([9], 9) | {name: value.to(DEVICE) if hasattr(value, "to") else value for name, value in change.items()}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    with pytest.warns(UserWarning, match=reason):
        found = compiled(**inputs)
    torch.testing.assert_close(found.last_hidden_state, model(**inputs).last_hidden_state)
    compiled(**inputs)
    ((key, count),) = compiled.calls.items()
    assert reason in key
    assert count == 2  # told once, counted twice


def test_gradients_training_and_autocast_go_to_the_model():
    model = make_model()
    compiled = bucketed(model)
    batch = make_batch([9], 9)
    with pytest.warns(UserWarning, match="gradients are on"):
        assert compiled(**batch).last_hidden_state.requires_grad
    with torch.no_grad():
        with torch.autocast(DEVICE.type, torch.bfloat16), pytest.warns(UserWarning, match="autocast is on"):
            compiled(**batch)
        with fastbert.batch_invariant(), pytest.warns(UserWarning, match="batch-invariant mode is not as it was"):
            compiled(**batch)
        model.train()
        with pytest.warns(UserWarning, match="training mode"):
            compiled(**batch)
        model.eval()
        model.to(torch.float64)
        with pytest.warns(UserWarning, match="compile it again"):
            assert compiled(**batch).last_hidden_state.dtype == torch.float64


@torch.no_grad()
def test_a_sequence_over_the_positions_gets_the_models_error():
    model = make_model()
    compiled = bucketed(model)
    with pytest.warns(UserWarning, match="longer than the model has positions"), pytest.raises(ValueError, match="33"):
        compiled(torch.full((1, 33), 5, device=DEVICE))


@torch.no_grad()
def test_weights_changed_in_place_are_seen():
    model = make_model()
    compiled = bucketed(model)
    batch = make_batch([9, 4], 9)
    before = compiled(**batch).last_hidden_state
    model.encoder.layer[0].output.dense.weight.mul_(2.0)
    after = compiled(**batch)
    assert not torch.allclose(after.last_hidden_state, before)
    assert_same(after, model(**batch), batch["attention_mask"])


@pytest.mark.skipif(GPU, reason="a GPU has graphs")
@torch.no_grad()
def test_on_a_cpu_the_model_answers_every_call():
    model = make_model("BertForTokenClassification")
    compiled = fastbert.compile(model)
    batch = make_batch([9, 4], 9)
    assert torch.equal(compiled(**batch).logits, model(**batch).logits)
    labels = torch.zeros_like(batch["input_ids"])
    assert torch.equal(compiled(**batch, labels=labels).loss, model(**batch, labels=labels).loss)
    assert dict(compiled.calls) == {f"model: {ON_CPU}": 2}
    assert {one.tokens for one in compiled.buckets if one.sequences == 1} == {32}  # the model has 32 positions


def test_wrong_models_and_buckets_are_refused():
    with pytest.raises(ValueError, match="in training mode"):
        fastbert.compile(make_model().train())
    with pytest.raises(ValueError, match="one of fastbert's BERT classes, got Linear"):
        fastbert.compile(torch.nn.Linear(2, 2).eval())
    with pytest.raises(ValueError, match="at least one bucket"):
        fastbert.compile(make_model(), [])
    for wrong in ((4, 4), (8, 0)):
        with pytest.raises(ValueError, match="more tokens than sequences"):
            fastbert.compile(make_model(), [wrong])
    with pytest.raises(ValueError, match="free ones included"):
        BucketInputs(make_model(), Bucket(3, 2))
    assert max(DEFAULT_BUCKETS).tokens == 8192
