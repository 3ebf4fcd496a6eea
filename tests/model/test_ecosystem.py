"""Pipelines, generation, encoder-decoders, sentence-transformers, torch.compile and torch.export."""

import copy
import inspect
import logging
import warnings

import pytest
import torch
import transformers
from torch import nn

import fastbert
from tests.model.parity import (
    HEADS,
    HEADS_AND_DECODER,
    LM_DECODER,
    LM_HEAD,
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
    batch_of,
    config_for,
    gradients,
    labels_for,
    make_batch,
    pair,
    projection,
    quiet_transformers,
    randomise,
    recorded_log,
    token_labels,
)

# ---- pipelines ----------------------------------------------------------------------------------------------------------

WORDS = "the a cat dog sat ran on over mat moon quickly and then it was gone ##s ##ed paris london in lives works".split()
TEXTS = ["the cat sat on the mat", "dog", "it ran quickly over the moon and then the dog was gone", "a cat lives in paris"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary += [f"[unused{index}]" for index in range(120 - len(vocabulary))]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(vocabulary))
    return transformers.BertTokenizer(vocab=str(path), model_max_length=64)


def comparable(value):
    """Numbers within 1e-4 of each other, everything else equal."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [comparable(entry) for entry in value]
    return pytest.approx(float(value), abs=1e-4) if isinstance(value, (float, int)) or hasattr(value, "dtype") else value


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return float(value) if isinstance(value, (float, int)) or hasattr(value, "dtype") else value


def pipeline_results(task, head, tokenizer, inputs, call=None, **options):
    results = []
    config = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}} if head is TOKEN else {}
    if task == "zero-shot-classification":
        config = {"label2id": {"entailment": 0, "neutral": 1, "contradiction": 2, "x": 3}}
    for model in pair(head, **config):
        with recorded_log() as messages:
            pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)
            results.append((pipe(inputs, **(call or {})), messages))
    assert not any("not supported" in message for message in results[1][1])
    return results


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("task", "head", "options"),
    [
        ("text-classification", SEQUENCE, {"top_k": None}),
        ("token-classification", TOKEN, {"aggregation_strategy": "none"}),
        ("token-classification", TOKEN, {"aggregation_strategy": "simple"}),
        ("feature-extraction", MODEL, {}),
    ],
    ids=["text", "tokens", "entities", "features"],
)
def test_pipelines(task, head, options, batch_size, tokenizer):
    """Batches of uneven texts: the pipeline cuts padding away by the mask, so only real tokens count."""
    (expected, _), (actual, _) = pipeline_results(task, head, tokenizer, TEXTS, batch_size=batch_size, **options)
    if task == "feature-extraction" and batch_size > 1:
        lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
        expected, actual = ([row[0][:length] for row, length in zip(rows, lengths)] for rows in (expected, actual))
    assert plain(actual) == comparable(expected)
    assert len(actual) == len(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fill_mask_pipeline(batch_size, tokenizer):
    texts = ["the [MASK] sat", "a dog [MASK] over the moon and then it was [MASK]", "[MASK]"]
    (expected, _), (actual, _) = pipeline_results("fill-mask", MASKED_LM, tokenizer, texts, batch_size=batch_size)
    assert plain(actual) == comparable(expected)


def test_zero_shot_pipeline(tokenizer):
    (expected, _), (actual, _) = pipeline_results(
        "zero-shot-classification", SEQUENCE, tokenizer, TEXTS[:2], {"candidate_labels": ["cat", "moon dog", "paris"]}
    )
    assert plain(actual) == comparable(expected)


def test_text_generation_pipeline(tokenizer):
    (expected, _), (actual, _) = pipeline_results(
        "text-generation", LM_DECODER, tokenizer, ["the cat", "a"], {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    )
    assert actual == expected


# ---- decoders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["no_mask", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 7},
        {"cache_implementation": "static"},
        {"output_scores": True, "return_dict_in_generate": True},
    ],
    ids=str,
)
def test_generation_token_for_token(pattern, options):
    reference, fast = pair(LM_DECODER, bos_token_id=2, eos_token_id=None)
    batch = make_batch(pattern)
    mask = batch.mask if batch.mask is not None else torch.ones_like(batch.input_ids)
    prompt = {"input_ids": batch.input_ids, "attention_mask": mask}
    results = []
    for model in (reference, fast):
        torch.manual_seed(0)
        with quiet_transformers():
            results.append(model.generate(**prompt, max_new_tokens=8, pad_token_id=0, **options))
    if isinstance(results[0], torch.Tensor):
        assert torch.equal(results[1], results[0])
        assert results[0].shape[1] == 20
    else:
        assert torch.equal(results[1].sequences, results[0].sequences)
        assert_close("scores", torch.stack(results[1].scores), torch.stack(results[0].scores))


@pytest.mark.parametrize("pattern", ["no_mask", "right", "left"])
@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("head", [MODEL, LM_HEAD], ids=str)
def test_the_cache_of_a_decoder(head, use_cache, pattern):
    """Returned unless it is declined, filled with the same keys and values, and good for a second step."""
    reference, fast = pair(head, is_decoder=True)
    batch = make_batch(pattern)
    inputs = batch.inputs(use_cache=use_cache)
    expected, actual = reference(**inputs), fast(**inputs)
    assert (expected.past_key_values is None) == (use_cache is False)
    assert_same_outputs(actual, expected, batch.real)
    if use_cache is not False:
        mask = None if batch.mask is None else torch.cat([batch.mask, batch.mask.new_ones(5, 2)], 1)
        steps = [
            model(input_ids=batch.input_ids[:, :2], attention_mask=mask, past_key_values=out.past_key_values)
            for model, out in ((reference, expected), (fast, actual))
        ]
        assert_same_outputs(steps[1], steps[0], torch.ones(5, 2, dtype=torch.bool))


def cache_name() -> str:
    """What the installed transformers calls the argument and the output that hold keys and values."""
    (name,) = {"past_key_values", "cache"} & set(inspect.signature(transformers.BertModel.forward).parameters)
    return name


@pytest.mark.parametrize("given", ["by_name", "by_the_old_name", "by_position"])
@pytest.mark.parametrize("head", [MODEL, LM_DECODER, LM_HEAD], ids=str)
def test_a_cache_is_never_overlooked(head, given):
    """Under each name that transformers takes it by, by position, and also given to an encoder, which reads it as well."""
    reference, fast = pair(head)
    name, ids = cache_name(), make_batch("no_mask").input_ids
    with quiet_transformers():
        filler = transformers.BertModel(config_for(MODEL, is_decoder=True)).eval().requires_grad_(False)
    filled = filler(ids, use_cache=True)[name]
    outputs = []
    for model in (reference, fast):
        cache = copy.deepcopy(filled)
        if given == "by_position":
            position = list(inspect.signature(type(model).forward).parameters).index(name) - 1
            outputs.append(model(ids[:, :2], *[None] * (position - 1), cache))
        else:
            outputs.append(model(ids[:, :2], **{name if given == "by_name" else "past_key_values": cache}))
    assert_same_outputs(outputs[1], outputs[0], None)


def test_a_cache_given_twice_is_what_it_is_in_transformers():
    reference, fast = pair(MODEL)
    ids, cache = make_batch("no_mask").input_ids, transformers.DynamicCache()
    outcomes = []
    for model in (reference, fast):
        try:
            outcomes.append(type(model(ids, past_key_values=None, **{cache_name(): cache})))
        except TypeError as error:
            outcomes.append(type(error))
    assert outcomes[0] is outcomes[1]


@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_nothing_that_transformers_deprecates_is_used(head):
    """A user who uses nothing deprecated reads no warning about it."""
    _, fast = pair(head)
    batch = make_batch("right", head)
    fast.base_model.embeddings.word_embeddings.register_forward_hook(lambda *_: None)  # the embedding calls its modules
    fast.base_model.encoder.layer[1].register_forward_hook(lambda *_: None)  # and a layer is called as transformers calls it
    with warnings.catch_warnings(), recorded_log() as messages:
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        fast(**batch.inputs(**labels_for(head, batch)))
        fast(**batch.inputs(output_hidden_states=True))
        if head is LM_DECODER:
            fast.generate(batch.input_ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert not any("deprecated" in message for message in messages), messages


@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "holes"])
def test_a_decoder_without_cache_is_causal(pattern):
    """Also on packed tokens: a token sees itself and what comes before it, never what follows."""
    reference, fast = pair(LM_DECODER, use_cache=False)
    batch = make_batch(pattern)
    assert_same_run(LM_DECODER, reference, fast, batch.inputs(labels=token_labels(batch, 120)), batch.real)
    changed = batch.input_ids.clone()
    changed[:, 6:] = 99
    first, second = fast(**batch.inputs()).logits, fast(**batch.inputs(input_ids=changed)).logits
    assert_close("the past", first[:, :6][batch.real[:, :6]], second[:, :6][batch.real[:, :6]], 1e-6)
    assert (first - second)[:, 6:][batch.real[:, 6:]].abs().max() > 0.1


@pytest.mark.parametrize("encoder_mask", [True, False])
@pytest.mark.parametrize("pattern", ["no_mask", "right"])
@pytest.mark.parametrize("head", [MODEL, LM_HEAD], ids=str)
def test_cross_attention(head, pattern, encoder_mask):
    reference, fast = pair(head, is_decoder=True, add_cross_attention=True)
    batch = make_batch(pattern)
    encoded = torch.randn(5, 9, 48, generator=torch.Generator().manual_seed(1))
    inputs = batch.inputs(encoder_hidden_states=encoded, **labels_for(head, batch))
    if encoder_mask:
        inputs["encoder_attention_mask"] = (torch.arange(9)[None] < torch.tensor([9, 1, 4, 8, 2])[:, None]).long()
    assert_same_run(head, reference, fast, inputs, batch.real)
    # The same decoder also runs without an encoder.
    assert_same_run(head, reference, fast, batch.inputs(**labels_for(head, batch)), batch.real)


def test_encoder_hidden_states_without_cross_attention_are_refused():
    reference, fast = pair(MODEL, is_decoder=True)
    inputs = make_batch("no_mask").inputs(encoder_hidden_states=torch.randn(5, 3, 48))
    for model in (reference, fast):
        with pytest.raises(ValueError, match="cross-attention"):
            model(**inputs)


def test_an_encoder_decoder_of_two_berts():
    models = []
    for base, lm in ((MODEL.reference, LM_HEAD.reference), (MODEL.fast, LM_HEAD.fast)):
        encoder, decoder = base(config_for()), lm(config_for(is_decoder=True, add_cross_attention=True))
        model = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder)
        model.config.decoder_start_token_id, model.config.pad_token_id = 2, 0
        models.append(randomise(model).eval())
    reference, fast = models
    fast.load_state_dict(reference.state_dict())
    batch = make_batch("right")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask, "labels": token_labels(batch, 120)}
    expected, actual = reference(**inputs), fast(**inputs)
    assert_close("loss", actual.loss, expected.loss)
    assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))
    del inputs["labels"]
    options = {"max_new_tokens": 6, "decoder_start_token_id": 2, "pad_token_id": 0, "do_sample": False}
    with quiet_transformers():
        assert torch.equal(fast.generate(**inputs, **options), reference.generate(**inputs, **options))


# ---- sentence-transformers ----------------------------------------------------------------------------------------------

SENTENCES = [
    "A cat sat on the mat.",
    "The kitten rested on the rug, watching the rain run down the window until somebody opened the door.",
    "Interest rates rose again.",
    "Yes.",
    "Central banks tightened policy for a third time this year, and bond prices fell.",
]


def test_sentence_transformers_with_accelerate(sentence_encoder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(sentence_encoder, device="cpu")
    expected = model.encode(SENTENCES, convert_to_tensor=True, batch_size=5)
    tokens = model.encode(SENTENCES, output_value="token_embeddings", batch_size=5)
    classes = [type(module) for module in model.modules()]
    parameters = list(model.parameters())
    assert fastbert.accelerate(model) is model
    assert isinstance(model[0].auto_model, fastbert.BertModel)
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    actual = model.encode(SENTENCES, convert_to_tensor=True, batch_size=5)
    assert_close("embeddings", actual, expected)
    for index, (a, b) in enumerate(zip(model.encode(SENTENCES, output_value="token_embeddings", batch_size=5), tokens)):
        assert_close(f"token embeddings {index}", a, b)
    assert_close("similarities", model.similarity(actual, actual), model.similarity(expected, expected))
    fastbert.restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert_close("restored", model.encode(SENTENCES, convert_to_tensor=True, batch_size=5), expected, 1e-6)


def test_a_real_checkpoint_loads_into_our_classes(sentence_encoder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentence_encoder)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    reference, fast = (library.BertModel.from_pretrained(sentence_encoder).eval() for library in (transformers, fastbert))
    with torch.no_grad():
        expected, actual = (model(**inputs, output_hidden_states=True) for model in (reference, fast))
    assert_same_outputs(actual, expected, inputs["attention_mask"].bool())


# ---- torch.compile and torch.export -------------------------------------------------------------------------------------


class CountingBackend:
    """Counts the graphs that torch.compile hands over and the code that each of them calls."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.graphs = 0
        self.backend = backend

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend(self.backend)(graph, example_inputs)


@pytest.fixture(autouse=True)
def _quiet_tracer():
    """PyTorch logs structured traces at debug level, which pytest would format and keep."""
    logger = logging.getLogger("torch.__trace")
    propagate, logger.propagate = logger.propagate, False
    yield
    logger.propagate = propagate


@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_compiles_as_one_graph(head):
    """fullgraph=True: a graph break is an error. Real tokens and the contract at padding, from padded inputs with a mask."""
    reference, fast = pair(head, use_cache=False, num_hidden_layers=1)
    batch = make_batch("right", head)
    backend = CountingBackend("eager")
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    with torch.no_grad():
        actual = compiled(**batch.inputs())
        assert_same_outputs(actual, reference(**batch.inputs()), batch.flat_real)
        if head is MODEL:
            assert actual.last_hidden_state[~batch.real].abs().max() == 0
        if head is QUESTION:
            assert_padding_is_below(actual.start_logits, batch.real)
    assert backend.graphs == 1


@pytest.mark.parametrize("head", [PRETRAINING, QUESTION], ids=str)
def test_compiled_training_step(head):
    """Losses and every gradient through AOTAutograd; labels on padding, and a first token that is padding."""
    reference, fast = pair(head, num_hidden_layers=1)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for pattern in ("right", "first_token_masked"):
        batch = make_batch(pattern, head)
        labels = labels_for(head, batch)
        if "labels" in labels:
            labels["labels"][~batch.real] = 3
        actual, expected = compiled(**batch.inputs(**labels)), reference(**batch.inputs(**labels))
        assert_close("loss", actual.loss, expected.loss)
        assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


@pytest.mark.parametrize("option", [{"return_logits": False}, {"real_tokens_only": True}], ids=str)
def test_compiled_losses_of_our_own(option):
    """The new arguments compile too and give what they give uncompiled."""
    head = MASKED_LM if "return_logits" in option else QUESTION
    _, fast = pair(head, num_hidden_layers=1)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch), **option)
    loss = torch.compile(fast, fullgraph=True, backend="aot_eager")(**inputs).loss
    compiled = {name: gradient.clone() for name, gradient in gradients(fast, loss).items()}
    eager = fast(**inputs).loss
    assert_close("loss", loss, eager)
    assert_same_gradients(compiled, gradients(fast, eager))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiles_with_inductor():
    reference, fast = pair(SEQUENCE, device="cuda")
    batch = make_batch("right").to("cuda")
    inputs = batch.inputs(**labels_for(SEQUENCE, batch))
    actual, expected = torch.compile(fast, fullgraph=True)(**inputs), reference(**inputs)
    assert_close("loss", actual.loss, expected.loss)
    assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


@pytest.mark.parametrize(
    ("head", "mode", "masked"), [(MODEL, "dynamic", True), (TOKEN, "automatic", True), (SEQUENCE, "dynamic", False)], ids=str
)
def test_two_graphs_serve_every_length(head, mode, masked):
    reference, fast = pair(head, max_position_embeddings=512, num_hidden_layers=1)
    backend = CountingBackend("eager")
    compiled = torch.compile(fast, fullgraph=True, dynamic=True if mode == "dynamic" else None, backend=backend)
    for seqlen in (1, 2, 7, 64, 17, 129, 511, 512, 1, 40):
        lengths = torch.tensor([seqlen, max(1, seqlen // 2), max(1, seqlen - 1)])
        real = torch.arange(seqlen)[None] < lengths[:, None]
        batch = batch_of(real if masked else torch.ones_like(real), masked=masked)
        with torch.no_grad():
            assert_same_outputs(compiled(**batch.inputs()), reference(**batch.inputs()), batch.real)
    assert backend.graphs <= 2


def test_a_compiled_model_follows_its_weights_and_hooks():
    reference, fast = pair(SEQUENCE, num_hidden_layers=1)
    compiled = torch.compile(fast, backend="eager")
    batch = make_batch("right")
    eager = fast(**batch.inputs())
    compiled(**batch.inputs())
    assert_same_outputs(fast(**batch.inputs()), eager, None, tolerance=0.0)
    for model in (reference, fast):
        randomise(model, seed=4)
    assert_same_outputs(compiled(**batch.inputs()), reference(**batch.inputs()), batch.real)
    with torch.no_grad():
        assert_same_outputs(compiled(**batch.inputs()), reference(**batch.inputs()), batch.real)


def test_the_compile_method_of_the_module():
    reference, fast = pair(TOKEN, num_hidden_layers=1)
    batch = make_batch("right")
    fast.compile(fullgraph=True, backend="eager")
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), batch.real)


def test_layers_compiled_one_by_one():
    """Regional compilation, as diffusers and torchtitan do it."""
    reference, fast = pair(TOKEN, num_hidden_layers=2)
    batch = make_batch("right")
    for layer in fast.bert.encoder.layer:
        layer.compile(backend="eager")
    assert_same_run(TOKEN, reference, fast, batch.inputs(**labels_for(TOKEN, batch)), batch.real)


@pytest.mark.parametrize(("head", "strict"), [(MODEL, False), (MASKED_LM, False), (SEQUENCE, True), (QUESTION, False)], ids=str)
def test_export(head, strict):
    """One exported program for any batch and length, run on batches with other patterns of padding."""
    reference, fast = pair(head, num_hidden_layers=1)
    example = make_batch("right")
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in example.inputs()}
    with torch.no_grad():
        program = torch.export.export(fast, (), example.inputs(), dynamic_shapes=dynamic, strict=strict).module()
        for pattern in ("right", "left", "holes", "longest"):
            batch = batch_of(make_batch(pattern).real[:3, :40])
            assert_same_outputs(program(**batch.inputs()), reference(**batch.inputs()), batch.real)


def test_export_saves_and_loads(tmp_path):
    reference, fast = pair(SEQUENCE, num_hidden_layers=1)
    batch = make_batch("right")
    torch.export.save(torch.export.export(fast, (), batch.inputs()), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert_close("logits", loaded(**batch.inputs())["logits"], reference(**batch.inputs()).logits)


@pytest.mark.filterwarnings("ignore")
def test_jit_tracing():
    reference, fast = pair(SEQUENCE)
    batch = make_batch("right")
    arguments = (batch.input_ids, batch.mask, batch.token_type_ids)
    try:
        torch.jit.trace(reference, arguments, strict=False, check_trace=False)
    except IndexError as error:
        pytest.skip(f"transformers {transformers.__version__} cannot be traced itself: {error}")
    traced = [torch.jit.trace(model, arguments, strict=False, check_trace=False) for model in (reference, fast)]
    other = batch_of(make_batch("right").real[:3])
    arguments = (other.input_ids, other.mask, other.token_type_ids)
    expected, actual = (module(*arguments)["logits"] for module in traced)
    assert_close("logits", actual, expected)


def test_a_fake_forward_computes_shapes_only():
    """FakeTensorMode, as memory estimators and sharding planners use it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cpu"):
        for head in (MODEL, SEQUENCE, QUESTION):
            model = head.fast(config_for(head)).eval()
            ids = torch.ones(4, 10, dtype=torch.int64)
            out = model(input_ids=ids, attention_mask=torch.ones(4, 10, dtype=torch.int64))
            assert all(value.shape[0] == 4 for value in out.values())


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_summaries_by_the_meta_device(head):
    """Shapes without values, where transformers has them: it reads the mask's values when there is one."""
    with torch.device("meta"), quiet_transformers():
        models = [library(config_for(head)).eval() for library in (head.reference, head.fast)]
        ids = torch.ones((2, 3, 10) if head.choices else (2, 10), dtype=torch.int64)
        expected, actual = (model(input_ids=ids) for model in models)
        masked = models[1](input_ids=ids, attention_mask=torch.ones_like(ids))
    for key in expected.keys():
        assert actual[key].shape == masked[key].shape == expected[key].shape
        assert actual[key].is_meta


def test_a_wrapper_module_around_the_model():
    """BERT inside a user's own module, with a head of his own on the states of the last two layers."""

    class Tagger(nn.Module):
        def __init__(self, bert):
            super().__init__()
            self.bert = bert
            self.lstm = nn.LSTM(96, 7, batch_first=True, bidirectional=True)

        def forward(self, input_ids, attention_mask):
            states = self.bert(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
            return self.lstm(torch.cat(states[-2:], -1) * attention_mask[..., None])[0]

    reference, fast = (Tagger(model) for model in pair(MODEL))
    fast.load_state_dict(reference.state_dict())
    batch = make_batch("right")
    outs = [model(batch.input_ids, batch.mask) for model in (reference, fast)]
    assert_close("tags", outs[1], outs[0])
    assert_same_gradients(
        *(gradients(model, projection([out], batch.real)) for model, out in zip((fast, reference), outs[::-1]))
    )
