"""The same class from the outside: names, signatures, configs, checkpoints in both directions, loading reports."""

import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils.generic import find_labels

import fastbert
from tests.model.parity import (
    HEADS,
    HEADS_AND_DECODER,
    LM_HEAD,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_outputs,
    assert_same_run,
    config_for,
    labels_for,
    make_batch,
    pair,
    quiet_transformers,
    randomise,
    recorded_log,
)

every_head = pytest.mark.parametrize("head", HEADS, ids=str)
both_ways = pytest.mark.parametrize("direction", ["reference_to_fast", "fast_to_reference", "fast_to_fast"])
TIED = [PRETRAINING, LM_HEAD, MASKED_LM]
NEW_ARGUMENTS = {
    "BertModel": {"loss_positions", "output_positions", "caller"},
    "BertForPreTraining": {"return_logits", "num_items_in_batch", "num_pairs_in_batch"},
    "BertForMaskedLM": {"return_logits"},
    "BertForMultipleChoice": {"num_choices"},
    "BertForQuestionAnswering": {"real_tokens_only"},
}


# ---- identity ----------------------------------------------------------------------------------------------------------


def test_the_config_is_transformers_own():
    assert fastbert.BertConfig is transformers.BertConfig


@every_head
def test_classes_are_transformers_own_by_inheritance_and_name(head):
    assert issubclass(head.fast, head.reference)
    assert head.fast is not head.reference
    assert head.fast.__name__ == head.reference.__name__
    reference, fast = pair(head)
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in reference.named_modules()]
    for (name, module), original in zip(fast.named_modules(), reference.modules()):
        assert isinstance(module, type(original)), name
        assert type(module).__name__ == type(original).__name__, name


@every_head
def test_class_attributes_that_tools_read(head):
    for name in (
        "config_class",
        "base_model_prefix",
        "main_input_name",
        "_no_split_modules",
        "_tied_weights_keys",
        "_keys_to_ignore_on_load_unexpected",
        "_keys_to_ignore_on_load_missing",
        "supports_gradient_checkpointing",
        "_supports_sdpa",
        "_supports_flash_attn",
        "_supports_flex_attn",
        "_supports_attention_backend",
        "input_modalities",
    ):
        assert getattr(head.fast, name) == getattr(head.reference, name), name
    assert head.fast.can_generate() == head.reference.can_generate()


@every_head
def test_the_forward_signature_is_a_superset(head):
    reference = inspect.signature(head.reference.forward).parameters
    fast = inspect.signature(head.fast.forward).parameters
    added = [parameter for name, parameter in fast.items() if name not in reference]
    assert [name for name in fast if name in reference] == list(reference)
    for name, parameter in reference.items():
        assert (fast[name].kind, fast[name].default) == (parameter.kind, parameter.default), name
    assert {parameter.name for parameter in added} == {"cu_seqlens", "max_seqlen"} | NEW_ARGUMENTS.get(head.name, set())
    positional = [name for name, parameter in reference.items() if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert list(fast)[: len(positional)] == positional, "an argument of fastbert's stands before one of transformers'"
    for parameter in added:
        assert parameter.default is not inspect.Parameter.empty, parameter.name


@every_head
def test_the_constructor_signature_is_the_same(head):
    reference, fast = (dict(inspect.signature(library.__init__).parameters) for library in (head.reference, head.fast))
    padding = fast.pop("padding")
    assert (padding.kind, padding.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    assert [(p.name, p.kind, p.default) for p in fast.values()] == [(p.name, p.kind, p.default) for p in reference.values()]


@every_head
def test_the_trainer_finds_the_same_labels(head):
    assert find_labels(head.fast) == find_labels(head.reference)


@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fresh_model_draws_the_same_weights(head, seed):
    models = []
    for build in (head.reference, head.fast):
        torch.manual_seed(seed)
        with quiet_transformers():
            models.append(build(config_for(head)))
    reference, fast = (model.state_dict() for model in models)
    assert list(fast) == list(reference)
    for name, value in reference.items():
        assert torch.equal(fast[name], value), name
    assert models[0].training == models[1].training


@every_head
def test_state_dict_keys_shapes_and_dtypes(head):
    reference, fast = pair(head, dtype=torch.bfloat16)
    assert {name: (v.shape, v.dtype) for name, v in fast.state_dict().items()} == {
        name: (v.shape, v.dtype) for name, v in reference.state_dict().items()
    }
    assert list(fast.state_dict()) == list(reference.state_dict())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in reference.named_parameters()]
    assert [name for name, _ in fast.named_buffers()] == [name for name, _ in reference.named_buffers()]
    reference.load_state_dict(fast.state_dict(), strict=True)
    storages = {parameter.data_ptr() for parameter in fast.parameters()}
    assert len(storages) == len(list(fast.parameters())), "two parameters share memory"


# ---- outputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("pattern", ["no_mask", "right"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_tuples(head, pattern, how):
    reference, fast = pair(head)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch))
    if how == "argument":
        inputs["return_dict"] = False
    else:
        reference.config.return_dict = fast.config.return_dict = False
    expected, actual = reference(**inputs), fast(**inputs)
    assert isinstance(expected, tuple)
    assert_same_outputs(actual, expected, batch.flat_real)


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "empty_row"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_hidden_states(head, pattern, how):
    reference, fast = pair(head)
    batch = make_batch(pattern, head)
    inputs = batch.inputs()
    if how == "argument":
        inputs["output_hidden_states"] = True
    else:
        for model in (reference, fast):
            model.config.output_hidden_states = True
    expected, actual = reference(**inputs), fast(**inputs)
    assert len(expected.hidden_states) == 4
    assert_same_outputs(actual, expected, batch.flat_real)


@pytest.mark.parametrize("pattern", ["no_mask", "right"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_hidden_states_stand_on_the_way_from_the_weights_to_the_loss(head, pattern):
    """Saliency: the gradient of a loss with respect to every returned state, as in transformers."""
    batch = make_batch(pattern, head)
    results = []
    for model in pair(head):
        out = model(**batch.inputs(**labels_for(head, batch)), output_hidden_states=True)
        if head is MODEL:
            assert out.hidden_states[-1] is out.last_hidden_state
        loss = out.loss if "loss" in out.keys() else out.pooler_output.square().sum() + out.last_hidden_state[batch.real].sum()
        results.append(torch.autograd.grad(loss, out.hidden_states))
    for index, (expected, actual) in enumerate(zip(*results)):
        real = batch.flat_real
        assert_close(f"gradient of hidden_states[{index}]", actual[real], expected[real])


@pytest.mark.parametrize("layers", [[0, 2], [1], (0,), [0, 1, 2], []], ids=str)
@pytest.mark.parametrize("head", [MODEL, TOKEN], ids=str)
def test_a_list_of_hidden_states(head, layers):
    reference, fast = pair(head)
    batch = make_batch("right")
    outputs = []
    for model in (reference, fast):
        try:
            outputs.append(model(**batch.inputs(), output_hidden_states=layers))
        except Exception as error:  # whatever transformers raises
            outputs.append(type(error))
    if isinstance(outputs[0], type):
        assert outputs[1] is outputs[0]
    else:
        assert_same_outputs(outputs[1], outputs[0], batch.real)


@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "empty_row"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_attentions(head, pattern):
    reference, fast = pair(head, attn_implementation="eager")
    batch = make_batch(pattern, head)
    inputs = batch.inputs(output_attentions=True, output_hidden_states=True)
    expected, actual = reference(**inputs), fast(**inputs)
    assert len(expected.attentions) == 3
    assert_same_outputs(actual, expected, batch.flat_real)
    assert_same_outputs(actual, expected, batch.flat_real)
    assert_same_run(head, reference, fast, batch.inputs(), batch.flat_real)  # and back without them


def test_attentions_under_sdpa_are_what_transformers_gives():
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    with quiet_transformers():
        expected, actual = (model(**batch.inputs(), output_attentions=True) for model in (reference, fast))
    assert_same_outputs(actual, expected, batch.real)


def test_the_attention_implementation_can_be_set_later():
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    fast(**batch.inputs())
    with recorded_log() as messages:
        for model in (reference, fast):
            model.set_attn_implementation("eager")
    assert fast.config._attn_implementation == reference.config._attn_implementation == "eager"
    assert messages == []
    inputs = batch.inputs(output_attentions=True)
    assert_same_outputs(fast(**inputs), reference(**inputs), batch.real)


# ---- checkpoints --------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard", [None, "60KB"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_saved_files_are_the_same_bytes(head, shard, tmp_path):
    """config.json with its architectures, generation_config.json, every safetensors file and the index of shards."""
    options = {} if shard is None else {"max_shard_size": shard}
    reference, fast = pair(head)
    reference.save_pretrained(tmp_path / "reference", **options)
    fast.save_pretrained(tmp_path / "fast", **options)
    expected, actual = files_of(tmp_path / "reference"), files_of(tmp_path / "fast")
    assert actual.keys() == expected.keys()
    assert any("index" in name for name in expected) == (shard is not None)
    for name, content in expected.items():
        assert actual[name] == content, name
    assert json.loads(actual["config.json"])["architectures"] == [head.name]


@pytest.mark.parametrize("shard", [None, "60KB"])
@both_ways
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_round_trip(head, direction, shard, tmp_path):
    reference, fast = pair(head)
    source = reference if direction == "reference_to_fast" else fast
    target = head.reference if direction == "fast_to_reference" else head.fast
    source.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
    with recorded_log() as messages:
        loaded, info = target.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is target
    assert not loaded.training
    assert not any("newly initialized" in message or "UNEXPECTED" in message for message in messages)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.to_dict() == head.reference.from_pretrained(tmp_path).config.to_dict()
    batch = make_batch("right", head)
    assert_same_outputs(loaded(**batch.inputs()), reference(**batch.inputs()), batch.flat_real)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, "auto"], ids=str)
def test_loading_in_a_dtype(dtype, tmp_path):
    saved, _ = pair(SEQUENCE, dtype=torch.float16)
    saved.save_pretrained(tmp_path)
    reference = SEQUENCE.reference.from_pretrained(tmp_path, dtype=dtype)
    fast = SEQUENCE.fast.from_pretrained(tmp_path, dtype=dtype)
    assert fast.dtype == reference.dtype
    assert fast.config.dtype == reference.config.dtype
    batch = make_batch("right")
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), batch.real, tolerance=0.05)


@pytest.mark.parametrize(
    "options", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"attn_implementation": "eager"}], ids=str
)
def test_loading_options(options, tmp_path):
    saved, _ = pair(TOKEN)
    saved.save_pretrained(tmp_path)
    reference, fast = (library.from_pretrained(tmp_path, **options) for library in (TOKEN.reference, TOKEN.fast))
    assert fast.config._attn_implementation == reference.config._attn_implementation
    batch = make_batch("right")
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), batch.real)


def test_a_device_map_splits_layers_over_devices(tmp_path):
    """With offloading to disk the hooks of accelerate bring each weight in for its own module's call only."""
    saved, _ = pair(TOKEN)
    saved.save_pretrained(tmp_path / "model")
    device_map = {f"bert.encoder.layer.{index}": "cpu" for index in (0, 2)} | {"bert.embeddings": "cpu"}
    device_map |= {"bert.encoder.layer.1": "disk", "classifier": "disk"}
    batch = make_batch("right")
    outputs = []
    for library in (TOKEN.reference, TOKEN.fast):
        model = library.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / library.__module__)
        assert next(model.bert.encoder.layer[1].parameters()).device.type == "meta"
        with torch.no_grad():
            outputs.append(model(**batch.inputs()))
    assert_same_outputs(outputs[1], outputs[0], batch.real)


@every_head
def test_auto_classes_and_transformers_read_what_we_wrote(head, tmp_path):
    _, fast = pair(head)
    fast.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(model) is transformers.BertModel
    for name, value in model.state_dict().items():
        if not name.startswith("pooler") or head.pooled:
            source = fast.state_dict()[name if head is MODEL else f"bert.{name}"]
            assert torch.equal(value, source), name


# A checkpoint of one class, loaded into another: what is missing must be reported, never silent.


def loading_report(library, folder, **options):
    """(outcome, log): the loading info or the error, and every warning, in comparable form."""
    with recorded_log() as messages:
        torch.manual_seed(0)
        try:
            model, info = library.from_pretrained(folder, output_loading_info=True, **options)
        except Exception as error:
            return (type(error), str(error)), messages, None
    return (
        {key: sorted(map(str, value)) if not isinstance(value, str) else value for key, value in info.items()},
        messages,
        model,
    )


def assert_same_loading(head, folder, expect: str | None = None, **options):
    expected, expected_log, reference = loading_report(head.reference, folder, **options)
    actual, actual_log, fast = loading_report(head.fast, folder, **options)
    assert actual == expected
    # The rows of a report come in the order of a set.
    assert [sorted(message.splitlines()) for message in actual_log] == [sorted(text.splitlines()) for text in expected_log]
    if expect is not None:
        assert expect in f"{expected} {expected_log}"
    if reference is not None:
        for name, value in reference.state_dict().items():
            assert torch.equal(fast.state_dict()[name], value), f"{name}: another initialisation"
    return reference, fast


@every_head
def test_a_base_checkpoint_in_a_head(head, tmp_path):
    pair(MODEL)[0].save_pretrained(tmp_path)
    _, fast = assert_same_loading(head, tmp_path, None if head is MODEL else "MISSING")
    base = fast.base_model.state_dict()
    for name, value in pair(MODEL)[0].state_dict().items():
        assert name not in base or torch.equal(base[name], value), name


@pytest.mark.parametrize("head", [head for head in HEADS if head is not MODEL], ids=str)
def test_a_heads_checkpoint_in_the_base_model(head, tmp_path):
    pair(head)[0].save_pretrained(tmp_path)
    assert_same_loading(MODEL, tmp_path)


def edited_checkpoint(head, folder, edit):
    pair(head)[0].save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


EDITS = {
    "missing_linear": lambda w: w.pop("bert.encoder.layer.1.attention.self.query.weight"),
    "missing_bias": lambda w: w.pop("bert.encoder.layer.2.output.dense.bias"),
    "missing_norm": lambda w: w.pop("bert.embeddings.LayerNorm.weight"),
    "missing_embedding": lambda w: w.pop("bert.embeddings.word_embeddings.weight"),
    "missing_head": lambda w: [w.pop(name) for name in list(w) if "transform.dense" in name],
    "unexpected": lambda w: w.update({"bert.encoder.layer.7.output.dense.bias": torch.zeros(48), "nonsense": torch.zeros(2)}),
    "old_buffer": lambda w: w.update({"bert.embeddings.position_ids": torch.arange(64)[None]}),
    "gamma_and_beta": lambda w: [
        w.__setitem__(
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"), w.pop(name)
        )
        for name in list(w)
        if "LayerNorm" in name
    ],
    "mismatched_linear": lambda w: w.update({"bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(95, 48)}),
    "mismatched_vocabulary": lambda w: w.update({"bert.embeddings.word_embeddings.weight": torch.zeros(121, 48)}),
    "packed_qkv": lambda w: w.update({"bert.encoder.layer.0.attention.self.qkv.weight": torch.zeros(144, 48)}),
}


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_a_damaged_checkpoint_is_reported_as_by_transformers(edit, ignore, tmp_path):
    edited_checkpoint(MASKED_LM, tmp_path, EDITS[edit])
    telling = {"missing": "MISSING", "unexpected": "UNEXPECTED", "mismatched": "MISMATCH"}
    expect = next((word for start, word in telling.items() if edit.startswith(start)), None)
    assert_same_loading(MASKED_LM, tmp_path, expect, ignore_mismatched_sizes=ignore)


def test_another_number_of_labels(tmp_path):
    pair(SEQUENCE)[0].save_pretrained(tmp_path)
    assert_same_loading(SEQUENCE, tmp_path, "MISMATCH", num_labels=7)
    assert_same_loading(SEQUENCE, tmp_path, "MISMATCH", num_labels=7, ignore_mismatched_sizes=True)


def test_a_checkpoint_of_another_architecture_is_met_as_by_transformers(tmp_path):
    config = transformers.RobertaConfig(**{**config_for().to_dict(), "model_type": "roberta"})
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    assert_same_loading(MODEL, tmp_path)


def test_strict_loading_rejects_what_does_not_fit():
    _, fast = pair(MODEL)
    weights = fast.state_dict()
    weights.pop("encoder.layer.0.attention.self.key.weight")
    with pytest.raises(RuntimeError, match=r"encoder\.layer\.0\.attention\.self\.key\.weight"):
        fast.load_state_dict(weights)
    weights = fast.state_dict() | {"encoder.layer.0.attention.self.qkv.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fast.load_state_dict(weights)


def test_buffers_that_no_checkpoint_holds_are_rebuilt(tmp_path):
    pair(MODEL)[0].save_pretrained(tmp_path)
    fast = MODEL.fast.from_pretrained(tmp_path)
    assert torch.equal(fast.embeddings.position_ids, torch.arange(64)[None])
    assert torch.equal(fast.embeddings.token_type_ids, torch.zeros(1, 64, dtype=torch.int64))


def test_building_on_the_meta_device_and_filling_later():
    reference, _ = pair(SEQUENCE)
    with torch.device("meta"):
        fast = SEQUENCE.fast(config_for(SEQUENCE))
    assert all(parameter.is_meta for parameter in fast.parameters())
    fast.to_empty(device="cpu").eval()
    fast.load_state_dict(reference.state_dict())
    fast.bert.embeddings.position_ids.copy_(torch.arange(64)[None])
    fast.bert.embeddings.token_type_ids.zero_()
    batch = make_batch("right")
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), batch.real)


def test_state_dict_assigned_rather_than_copied():
    reference, fast = pair(SEQUENCE)
    donor = randomise(copy.deepcopy(reference), seed=9)
    fast.load_state_dict({name: value.clone() for name, value in donor.state_dict().items()}, assign=True)
    batch = make_batch("right")
    assert_same_run(SEQUENCE, donor, fast, batch.inputs(**labels_for(SEQUENCE, batch)), batch.real)


# ---- tying and resizing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("head", TIED, ids=str)
def test_tied_weights(head, loaded, tmp_path):
    _, fast = pair(head)
    if loaded:
        fast.save_pretrained(tmp_path)
        fast = head.fast.from_pretrained(tmp_path)
    predictions, embeddings = fast.cls.predictions, fast.bert.embeddings
    assert predictions.decoder.weight is embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    assert fast.get_input_embeddings() is embeddings.word_embeddings
    assert fast.get_output_embeddings() is predictions.decoder


@pytest.mark.parametrize("head", TIED, ids=str)
def test_untied_weights(head, tmp_path):
    reference, fast = pair(head, tie_word_embeddings=False)
    assert fast.cls.predictions.decoder.weight is not fast.bert.embeddings.word_embeddings.weight
    fast.save_pretrained(tmp_path)
    again = head.fast.from_pretrained(tmp_path)
    assert again.cls.predictions.decoder.weight is not again.bert.embeddings.word_embeddings.weight
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch))
    assert_same_run(head, reference, fast, inputs, batch.real)
    assert_same_run(head, reference, again, inputs, batch.real)


@pytest.mark.parametrize("size", [131, 90, None])
@pytest.mark.parametrize("head", [*TIED, MODEL, TOKEN], ids=str)
def test_resizing_the_vocabulary(head, size):
    reference, fast = pair(head)
    batch = make_batch("right")
    fast(**batch.inputs())
    for model in (reference, fast):
        torch.manual_seed(0)
        with quiet_transformers():
            model.resize_token_embeddings(size, pad_to_multiple_of=None if size else 64)
    assert {n: v.shape for n, v in fast.state_dict().items()} == {n: v.shape for n, v in reference.state_dict().items()}
    fast.load_state_dict(reference.state_dict())
    assert fast.config.vocab_size == reference.config.vocab_size == (size or 128)
    if head in TIED:
        assert fast.cls.predictions.decoder.weight is fast.bert.embeddings.word_embeddings.weight
        assert fast.cls.predictions.decoder.bias is fast.cls.predictions.bias
    batch.input_ids.clamp_(max=fast.config.vocab_size - 1)
    inputs = batch.inputs(**labels_for(head, batch))
    if "labels" in inputs:
        inputs["labels"].clamp_(
            max=min(fast.config.vocab_size, getattr(fast, "num_labels", 1000) if head is TOKEN else 1000) - 1
        )
    assert_same_run(head, reference, fast, inputs, batch.real)


def test_new_embeddings_in_either_place():
    reference, fast = pair(MASKED_LM)
    for model in (reference, fast):
        torch.manual_seed(4)
        model.set_input_embeddings(nn.Embedding(120, 48, padding_idx=0))
        model.set_output_embeddings(nn.Linear(48, 120))
    batch = make_batch("right")
    assert_same_run(MASKED_LM, reference, fast, batch.inputs(**labels_for(MASKED_LM, batch)), batch.real)
    for model in (reference, fast):
        model.tie_weights()
    assert fast.cls.predictions.decoder.weight is fast.bert.embeddings.word_embeddings.weight
    assert_same_run(MASKED_LM, reference, fast, batch.inputs(**labels_for(MASKED_LM, batch)), batch.real)


def test_without_a_pooler():
    reference, fast = pair(MODEL, add_pooling_layer=False)
    assert fast.pooler is None
    batch = make_batch("left")
    assert_same_run(MODEL, reference, fast, batch.inputs(), batch.real)
    assert fast(**batch.inputs()).pooler_output is None


def test_an_unused_pooler_gets_no_gradient():
    """As in transformers: DistributedDataParallel counts on knowing which parameters a loss did not touch."""
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    for model in (reference, fast):
        model(**batch.inputs()).last_hidden_state[batch.real].sum().backward()
    for name, parameter in fast.named_parameters():
        assert (parameter.grad is None) == (name.startswith("pooler")), name


def test_what_the_model_says_of_itself():
    reference, fast = pair(SEQUENCE)
    assert fast.num_parameters() == reference.num_parameters()
    assert fast.num_parameters(only_trainable=True, exclude_embeddings=True) == reference.num_parameters(True, True)
    assert fast.get_memory_footprint() == reference.get_memory_footprint()
    assert fast.device == reference.device
    assert fast.base_model is fast.bert
    assert fast.dummy_inputs.keys() == reference.dummy_inputs.keys()
    assert repr(fast) == repr(reference)
    assert_close("a buffer", fast.bert.embeddings.position_ids, reference.bert.embeddings.position_ids)
