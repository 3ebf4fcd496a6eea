"""Outputs, losses and the gradient of every parameter equal transformers', for every class and every kind of padding."""

import pytest
import torch
from torch import nn

from tests.model.parity import (
    COMMON,
    DEVICES,
    HEADS,
    HEADS_AND_DECODER,
    MASKED_LM,
    MODEL,
    PATTERNS,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_padding_is_below,
    assert_same_gradients,
    assert_same_outputs,
    assert_same_run,
    at_real_tokens,
    batch_of,
    gradients,
    labels_for,
    make_batch,
    pair,
    projection,
)

every_head = pytest.mark.parametrize("head", HEADS, ids=str)
every_head_and_decoder = pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
on_every_device = pytest.mark.parametrize("device", DEVICES)


@on_every_device
@pytest.mark.parametrize("pattern", PATTERNS)
@every_head_and_decoder
def test_outputs_and_gradients(head, pattern, device):
    reference, fast = pair(head, device=device)
    batch = make_batch(pattern, head).to(device)
    assert_same_run(head, reference, fast, batch.inputs(), batch.flat_real)


@on_every_device
@pytest.mark.parametrize("pattern", PATTERNS)
@every_head_and_decoder
def test_losses_and_their_gradients(head, pattern, device):
    reference, fast = pair(head, device=device)
    batch = make_batch(pattern, head).to(device)
    inputs = batch.inputs(**labels_for(head, batch))
    assert_same_run(head, reference, fast, inputs, batch.flat_real)


@pytest.mark.parametrize("pattern", COMMON)
@every_head_and_decoder
def test_it_is_the_same_function_and_not_a_near_one(head, pattern):
    """In float64 a difference of principle (a constant, an eps, a bias) cannot pass for rounding."""
    reference, fast = pair(head, dtype=torch.float64)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch))
    assert_same_run(head, reference, fast, inputs, batch.flat_real, tolerance=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"layer_norm_eps": 1e-3},
        {"num_attention_heads": 1},
        {"num_attention_heads": 3},
        {"num_attention_heads": 4},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 0},
        {"type_vocab_size": 5},
        {"pad_token_id": 3},
        {"pad_token_id": None},
        {"chunk_size_feed_forward": 4},
        {"intermediate_size": 7},
        {"hidden_size": 40, "num_attention_heads": 1},
        {"hidden_size": 192, "num_attention_heads": 1},
        {"hidden_size": 32, "num_attention_heads": 4},
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
    ],
    ids=lambda change: ",".join(f"{key}={value}" for key, value in change.items()),
)
@pytest.mark.parametrize("pattern", ["no_mask", "right"])
def test_every_architecture_of_the_config(change, pattern):
    """Head sizes without a kernel (12, 192, 8) included: they take transformers' path."""
    reference, fast = pair(MASKED_LM, **change)
    batch = make_batch(pattern)
    assert_same_run(MASKED_LM, reference, fast, batch.inputs(**labels_for(MASKED_LM, batch)), batch.real)


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.bool,
        torch.Tensor.int,
        torch.Tensor.long,
        torch.Tensor.float,
        torch.Tensor.half,
        torch.Tensor.double,
        lambda mask: mask.to(torch.uint8),
        lambda mask: 3 * mask,
        lambda mask: -1 * mask,
        lambda mask: 0.25 * mask,
    ],
    ids=["bool", "int32", "int64", "float32", "float16", "float64", "uint8", "threes", "minus_ones", "quarters"],
)
@pytest.mark.parametrize("head", [MODEL, TOKEN], ids=str)
def test_mask_dtypes(head, convert):
    reference, fast = pair(head)
    batch = make_batch("holes")
    assert_same_run(head, reference, fast, batch.inputs(attention_mask=convert(batch.mask)), batch.real, backward=False)


def blocks(batch) -> torch.Tensor:
    """A 4-D mask no 2-D mask can express: each token sees its own half, and everyone the first token."""
    place = torch.arange(batch.real.shape[1])
    keep = (place[:, None] < 6) == (place[None, :] < 6)
    keep[:, 0] = True
    return (keep[None, None] & batch.real[:, None, None, :]).clone()


@pytest.mark.parametrize("kind", ["bool", "additive", "additive_min", "one_head", "every_head", "one_row"])
@pytest.mark.parametrize("head", [MODEL, TOKEN, SEQUENCE, QUESTION], ids=str)
def test_4d_masks(head, kind):
    reference, fast = pair(head)
    batch = make_batch("right")
    keep = blocks(batch)
    if kind == "additive":
        keep = torch.zeros(keep.shape).masked_fill(~keep, -1e4)
    elif kind == "additive_min":
        keep = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    elif kind == "one_head":
        keep = keep.expand(-1, 2, -1, -1).clone()
        keep[:, 1] = True
    elif kind == "every_head":
        keep = keep.expand(-1, 2, -1, -1)
    elif kind == "one_row":
        keep = blocks(make_batch("full"))[:1]
    inputs = batch.inputs(attention_mask=keep, **labels_for(head, batch))
    assert_same_run(head, reference, fast, inputs, batch.real, everywhere=True)


def test_a_general_3d_mask_gives_what_transformers_gives():
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    inputs = batch.inputs(attention_mask=blocks(batch)[:, 0])
    try:
        expected = reference(**inputs)
    except Exception:
        with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)):
            fast(**inputs)
    else:
        assert_same_outputs(fast(**inputs), expected, batch.real)


@pytest.mark.parametrize("pattern", COMMON)
@pytest.mark.parametrize(
    "change",
    [
        "no_segments",
        "segments_of_one_row",
        "positions",
        "positions_of_one_row",
        "positions_without_segments",
        "int32_ids",
        "strided_ids",
        "positional",
        "embeds",
        "embeds_without_segments",
    ],
)
@pytest.mark.parametrize("head", [MODEL, TOKEN], ids=str)
def test_ids_in_every_form(head, change, pattern):
    reference, fast = pair(head)
    batch = make_batch(pattern)
    inputs, shape = batch.inputs(), batch.real.shape
    if change in ("no_segments", "positions_without_segments", "embeds_without_segments"):
        del inputs["token_type_ids"]
    if change == "segments_of_one_row":
        inputs["token_type_ids"] = inputs["token_type_ids"][:1]
    if change in ("positions", "positions_without_segments"):
        inputs["position_ids"] = torch.randint(0, 64, shape)
    if change == "positions_of_one_row":
        inputs["position_ids"] = torch.randint(0, 64, shape)[:1]
    if change == "int32_ids":
        inputs["input_ids"], inputs["token_type_ids"] = inputs["input_ids"].int(), inputs["token_type_ids"].int()
        inputs["position_ids"] = torch.arange(shape[1]).int()[None]
    if change == "strided_ids":
        inputs["input_ids"] = inputs["input_ids"].t().contiguous().t()
        inputs["token_type_ids"] = torch.stack([inputs["token_type_ids"]] * 3, -1)[..., 1]
    if change in ("embeds", "embeds_without_segments"):
        ids = inputs.pop("input_ids")
        inputs["inputs_embeds"] = torch.randn(*ids.shape, 48)
    if change == "positional":
        ids, segments = inputs.pop("input_ids"), inputs.pop("token_type_ids")
        mask = inputs.pop("attention_mask", None)
        expected, actual = reference(ids, mask, segments), fast(ids, mask, segments)
        assert_same_outputs(actual, expected, batch.real)
    assert_same_run(head, reference, fast, inputs or batch.inputs(), batch.real)


@pytest.mark.parametrize("pattern", COMMON)
@every_head_and_decoder
def test_gradient_of_inputs_embeds(head, pattern):
    reference, fast = pair(head)
    batch = make_batch(pattern, head)
    results = []
    for model in (reference, fast):
        embeds = torch.randn(*batch.input_ids.shape, 48, generator=torch.Generator().manual_seed(3)).requires_grad_()
        inputs = batch.inputs(inputs_embeds=embeds, **labels_for(head, batch))
        del inputs["input_ids"]
        out = model(**inputs)
        projection(out, batch.flat_real).backward()
        results.append((out, embeds.grad))
    (expected, expected_gradient), (actual, gradient) = results
    assert_same_outputs(actual, expected, batch.flat_real)
    assert_close("gradient of inputs_embeds", gradient, expected_gradient)


def test_inputs_embeds_of_another_dtype_promote_as_in_transformers():
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    inputs = batch.inputs(inputs_embeds=torch.randn(*batch.input_ids.shape, 48).half())
    del inputs["input_ids"]
    assert_same_run(MODEL, reference, fast, inputs, batch.real)


def test_the_padding_token_trains_only_by_other_means():
    """Real tokens with the padding id use its embedding, and nn.Embedding gives that row no gradient."""
    reference, fast = pair(MODEL)
    batch = make_batch("no_mask")
    batch.input_ids[0] = 0
    grads = [gradients(model, projection(model(**batch.inputs()), batch.real)) for model in (fast, reference)]
    assert_same_gradients(*grads)
    assert grads[0]["embeddings.word_embeddings.weight"][0].abs().max() == 0
    assert grads[0]["embeddings.word_embeddings.weight"][batch.input_ids[1]].abs().max() > 0


@pytest.mark.parametrize("pattern", ["right", "holes", "left", "empty_row", "one_real_token"])
@pytest.mark.parametrize("head", [head for head in HEADS if head.name != "BertModel"], ids=str)
def test_padding_positions_of_hidden_states_hold_zeros(head, pattern):
    _, fast = pair(head)
    batch = make_batch(pattern, head)
    states = fast(**batch.inputs(), output_hidden_states=True).hidden_states
    assert len(states) == 4
    for hidden in states:
        assert hidden.shape == (*batch.flat_real.shape, 48)
        assert hidden[~batch.flat_real].abs().max() == 0
        assert hidden[batch.flat_real].abs().amax(-1).min() > 0


@pytest.mark.parametrize("pattern", ["right", "left", "holes", "empty_row", "all_empty"])
@pytest.mark.parametrize("pooler", [True, False])
def test_padding_positions_of_the_base_model(pooler, pattern):
    reference, fast = pair(MODEL, add_pooling_layer=pooler)
    batch = make_batch(pattern)
    actual, expected = fast(**batch.inputs()), reference(**batch.inputs())
    assert_same_outputs(actual, expected, batch.real)
    assert actual.last_hidden_state[~batch.real].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["right", "left", "holes", "empty_row"])
def test_padding_positions_of_question_logits_lose_every_argmax(pattern, dtype):
    _, fast = pair(QUESTION, dtype=dtype)
    batch = make_batch(pattern)
    out = fast(**batch.inputs())
    for logits in (out.start_logits, out.end_logits):
        assert logits.dtype == dtype
        assert_padding_is_below(logits, batch.real)
        assert (logits[batch.real].abs() < 1e4).all()


def test_without_a_mask_no_position_counts_as_padding():
    """The padding id alone says nothing: transformers attends to it, and warns."""
    reference, fast = pair(QUESTION)
    batch = make_batch("no_mask")
    batch.input_ids[:, 5:] = 0
    assert_same_run(QUESTION, reference, fast, batch.inputs(), batch.real, everywhere=True)


@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
@every_head
def test_what_stands_at_padding_never_matters(head, pattern):
    _, fast = pair(head)
    batch = make_batch(pattern, head)
    if head.pooled and not batch.real[..., 0].all():
        pytest.skip("there the pooled token itself stands at padding")
    others = batch.input_ids.masked_fill(~batch.real, 77)
    assert (others != batch.input_ids).any()
    first, second = fast(**batch.inputs()), fast(**batch.inputs(input_ids=others))
    assert_same_outputs(second, first, None, tolerance=0.0)


@pytest.mark.parametrize("pattern", ["right", "holes"])
@every_head_and_decoder
def test_rows_do_not_see_each_other(head, pattern):
    """Each row alone gives the same as in its batch: sequences stay apart when packed."""
    _, fast = pair(head)
    batch = make_batch(pattern, head)
    inputs = batch.inputs()
    together = fast(**inputs)
    for row in range(batch.real.shape[0]):
        alone = fast(**{name: value[row : row + 1] for name, value in inputs.items()})
        key = next(iter(key for key in alone.keys() if key != "loss"))
        real = batch.real[row : row + 1].flatten(0, -2)
        rows = (
            slice(row * real.shape[0], (row + 1) * real.shape[0]) if together[key].dim() > 2 or key == "start_logits" else row
        )
        value = together[key][rows] if isinstance(rows, slice) else together[key][row : row + 1]
        assert_close(f"row {row}", at_real_tokens(alone[key], real), at_real_tokens(value, real))


@every_head
def test_training_mode_without_dropout_equals_eval(head):
    reference, fast = pair(head)
    batch = make_batch("right", head)
    evaluated = fast(**batch.inputs())
    reference.train(), fast.train()
    assert_same_run(head, reference, fast, batch.inputs(**labels_for(head, batch)), batch.flat_real)
    assert_same_outputs(fast(**batch.inputs()), evaluated, None)


@every_head
def test_repeats_bitwise(head):
    _, fast = pair(head)
    batch = make_batch("holes", head)
    inputs = batch.inputs(**labels_for(head, batch))
    first, second = fast(**inputs), fast(**inputs)
    assert_same_outputs(second, first, None, tolerance=0.0)
    scalars = [out.loss if out.get("loss") is not None else projection(out, batch.flat_real) for out in (first, second)]
    assert_same_gradients(*(gradients(fast, scalar) for scalar in scalars), tolerance=0.0)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(grad_mode):
    reference, fast = pair(MASKED_LM)
    batch = make_batch("right")
    with grad_mode():
        out = fast(**batch.inputs())
    assert not out.logits.requires_grad
    assert_same_outputs(out, reference(**batch.inputs()), batch.real)
    # Nothing that was made in inference mode may be left in the way of a later backward.
    assert_same_run(MASKED_LM, reference, fast, batch.inputs(**labels_for(MASKED_LM, batch)), batch.real)


@pytest.mark.parametrize("frozen", ["embeddings", "query", "bias", "LayerNorm", "encoder.layer.0", "everything but biases"])
def test_only_requested_gradients(frozen):
    reference, fast = pair(MODEL)
    for model in (reference, fast):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") if frozen == "everything but biases" else frozen not in name)
    batch = make_batch("right")
    assert_same_run(MODEL, reference, fast, batch.inputs(), batch.real)


def test_gradients_accumulate_over_two_backwards():
    reference, fast = pair(SEQUENCE)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(SEQUENCE, batch))
    for model in (reference, fast):
        for _ in range(2):
            model(**inputs).loss.backward()
    assert_same_gradients(
        {name: p.grad for name, p in fast.named_parameters()}, {name: p.grad for name, p in reference.named_parameters()}
    )


def test_the_inputs_are_left_as_they_were():
    _, fast = pair(QUESTION)
    batch = make_batch("holes")
    inputs = batch.inputs(position_ids=torch.arange(12)[None], **labels_for(QUESTION, batch))
    before = {name: value.clone() for name, value in inputs.items()}
    fast(**inputs)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name


def test_many_shapes_one_after_another():
    """Nothing of one call's shape may reach the next."""
    reference, fast = pair(SEQUENCE)
    for lengths in ([3, 9], [12], [1, 1, 1], [64], [2, 30, 17], [5], [12, 12], [1]):
        real = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
        batch = batch_of(real, seed=len(lengths))
        assert_same_run(SEQUENCE, reference, fast, batch.inputs(), batch.real, backward=False)


@pytest.mark.parametrize("head", [MASKED_LM, TOKEN, SEQUENCE], ids=str)
def test_bfloat16_is_as_near_to_the_truth_as_transformers_is(head):
    """The rule of the kernels, for a whole model: at most twice the error of transformers in the same dtype."""
    exact, _ = pair(head, dtype=torch.float64)
    reference, fast = pair(head, dtype=torch.bfloat16)
    exact.load_state_dict({name: value.double() for name, value in reference.state_dict().items()})
    batch = make_batch("right")
    truth, rounded, actual = (model(**batch.inputs()).logits for model in (exact, reference, fast))
    assert actual.dtype == torch.bfloat16
    errors = [
        (at_real_tokens(value.double(), batch.real) - at_real_tokens(truth, batch.real)).abs().max().item()
        for value in (actual, rounded)
    ]
    assert errors[0] <= 2 * errors[1], f"error {errors[0]:.3g}, transformers' own {errors[1]:.3g}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["no_mask", "right", "empty_row"])
@every_head
def test_16_bit_models_keep_their_dtypes(head, pattern, dtype):
    reference, fast = pair(head, dtype=dtype)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch))
    if head.name == "BertForSequenceClassification":
        inputs["labels"] = inputs["labels"].long()
    assert_same_run(head, reference, fast, inputs, batch.flat_real, tolerance=0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["no_mask", "right"])
@every_head_and_decoder
def test_autocast_gives_transformers_dtypes(head, pattern, dtype):
    reference, fast = pair(head)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(output_hidden_states=True, **labels_for(head, batch))
    with torch.autocast("cpu", dtype):
        expected, actual = reference(**inputs), fast(**inputs)
    assert_same_outputs(actual, expected, batch.flat_real, tolerance=0.1)
    loss = [out.loss if out.get("loss") is not None else projection(out, batch.flat_real) for out in (actual, expected)]
    for (name, gradient), wanted in zip(gradients(fast, loss[0]).items(), gradients(reference, loss[1]).values()):
        assert (gradient is None) == (wanted is None), name
        assert gradient is None or gradient.dtype == torch.float32, name


def test_double_backward():
    """A gradient penalty on the embeddings; PyTorch's fused attention has no second derivative."""
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    results = []
    for model in (reference, fast):
        embeds = torch.randn(*batch.input_ids.shape, 48, generator=torch.Generator().manual_seed(3)).requires_grad_()
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            out = model(inputs_embeds=embeds, attention_mask=batch.mask)
            (gradient,) = torch.autograd.grad(projection(out, batch.real), embeds, create_graph=True)
            results.append(gradients(model, gradient.square().sum()))
    assert_same_gradients(results[1], results[0], tolerance=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_jvp_and_vmap_over_inputs_embeds(masked):
    reference, fast = pair(MODEL, dtype=torch.float64)
    batch = make_batch("right" if masked else "no_mask")
    embeds = torch.randn(*batch.input_ids.shape, 48, dtype=torch.float64)
    tangent = torch.randn_like(embeds)

    def pooled(model):
        return lambda values: model(inputs_embeds=values, attention_mask=batch.mask).pooler_output

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        for name, transform in {
            "jvp": lambda function: torch.func.jvp(function, (embeds,), (tangent,))[1],
            "vjp": lambda function: torch.func.vjp(function, embeds)[1](torch.ones(5, 48, dtype=torch.float64))[0],
            "vmap": lambda function: torch.func.vmap(function)(torch.stack([embeds, tangent])),
        }.items():
            assert_close(name, transform(pooled(fast)), transform(pooled(reference)), 1e-10)


@pytest.mark.parametrize("pattern", ["right", "left", "empty_row"])
def test_deterministic_algorithms(pattern):
    """With PyTorch told to refuse what may not repeat, both passes still run, on fresh memory that it fills with NaN."""
    reference, fast = pair(SEQUENCE)
    batch = make_batch(pattern)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_run(SEQUENCE, reference, fast, batch.inputs(**labels_for(SEQUENCE, batch)), batch.real)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_parts_called_by_hand():
    """Users call embeddings, encoder, single layers and pooler themselves, as transformers would: padded, with its masks."""
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    mask = torch.zeros(5, 1, 1, 12).masked_fill(~batch.real[:, None, None], torch.finfo(torch.float32).min)
    results = []
    for model in (reference, fast):
        embedded = model.embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)
        layer = model.encoder.layer[1](embedded, mask)
        attention = model.encoder.layer[1].attention(embedded, mask)[0]
        chunk = model.encoder.layer[1].feed_forward_chunk(embedded)
        encoded = model.encoder(embedded, attention_mask=mask).last_hidden_state
        results.append([embedded, layer, attention, chunk, encoded, model.pooler(encoded)])
    for index, (expected, actual) in enumerate(zip(*results)):
        assert_close(f"part {index}", actual, expected)


def test_functional_call_uses_the_weights_it_is_given():
    reference, fast = pair(SEQUENCE)
    other, _ = pair(SEQUENCE, seed=5)
    batch = make_batch("right")
    weights = dict(other.named_parameters())
    actual = torch.func.functional_call(fast, weights, (), batch.inputs())
    assert_same_outputs(actual, other(**batch.inputs()), batch.real)
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), batch.real)
