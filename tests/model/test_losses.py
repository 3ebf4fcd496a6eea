"""Losses equal transformers' always, also where they read values at padding; labelled positions alone where asked."""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastbert
from tests.model.parity import (
    COMMON,
    HEADS,
    IGNORED,
    LM_DECODER,
    LM_HEAD,
    MASKED_LM,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_padding_is_below,
    assert_same_gradients,
    assert_same_outputs,
    assert_same_run,
    at_real_tokens,
    gradients,
    labels_for,
    make_batch,
    pair,
    quiet_transformers,
    token_labels,
)

PADDED = ["right", "left", "holes", "first_token_masked", "empty_row", "one_real_token"]
TOKEN_LABELLED = [PRETRAINING, MASKED_LM, LM_HEAD, LM_DECODER, TOKEN]


def label_count(head) -> int:
    return 4 if head is TOKEN else 120


@pytest.mark.parametrize("pattern", PADDED)
@pytest.mark.parametrize("head", TOKEN_LABELLED, ids=str)
def test_a_label_on_every_position(head, pattern):
    """Padding included, as scripts have it that copy input_ids into labels."""
    reference, fast = pair(head)
    batch = make_batch(pattern)
    labels = torch.randint(0, label_count(head), batch.real.shape)
    inputs = batch.inputs(**labels_for(head, batch) | {"labels": labels})
    assert_same_run(head, reference, fast, inputs, batch.real, everywhere=True)


@pytest.mark.parametrize("pattern", PADDED)
@pytest.mark.parametrize("head", TOKEN_LABELLED, ids=str)
def test_one_label_on_one_padding_position(head, pattern):
    reference, fast = pair(head)
    batch = make_batch(pattern)
    inputs = batch.inputs(**labels_for(head, batch))
    row, place = (~batch.real).nonzero()[-1].tolist()
    inputs["labels"][row, place] = 1
    assert_same_run(head, reference, fast, inputs, batch.real, everywhere=True)


@pytest.mark.parametrize("pattern", ["left", "holes", "first_token_masked"])
@pytest.mark.parametrize("head", [LM_HEAD, LM_DECODER], ids=str)
def test_the_shifted_loss_reads_the_padding_before_a_real_token(head, pattern):
    """No label is on padding, yet the first real token of a row is predicted from the padding before it."""
    reference, fast = pair(head)
    batch = make_batch(pattern)
    labels = torch.where(batch.real, batch.input_ids, IGNORED)
    after_padding = batch.real[:, 1:] & ~batch.real[:, :-1]
    assert (labels[:, 1:][after_padding] != IGNORED).any()
    assert_same_run(head, reference, fast, batch.inputs(labels=labels), batch.real)


@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("head", TOKEN_LABELLED, ids=str)
def test_no_label_at_all(head, labels_dtype):
    """The mean over nothing is NaN, there and here; int32 labels are an error, there and here."""
    reference, fast = pair(head)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch) | {"labels": torch.full(batch.real.shape, IGNORED, dtype=labels_dtype)})
    try:
        expected = reference(**inputs)
    except RuntimeError:
        with pytest.raises((RuntimeError, TypeError)):
            fast(**inputs)
    else:
        actual = fast(**inputs)
        assert actual.loss.isnan() == expected.loss.isnan()
        assert_same_outputs(actual, expected, batch.real)


@pytest.mark.parametrize("pattern", [*COMMON, "first_token_masked"])
@pytest.mark.parametrize("labels", ["both", "tokens", "sentences"])
def test_pretraining_needs_both_labels(labels, pattern):
    reference, fast = pair(PRETRAINING)
    batch = make_batch(pattern)
    given = labels_for(PRETRAINING, batch)
    if labels != "both":
        del given["next_sentence_label" if labels == "tokens" else "labels"]
    assert_same_run(PRETRAINING, reference, fast, batch.inputs(**given), batch.real)


# ---- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*COMMON, "first_token_masked", "one_real_token", "all_empty"])
@pytest.mark.parametrize("spans", ["random", "at_padding", "outside", "negative", "column", "all_outside"])
def test_answer_spans(spans, pattern):
    """The softmax runs over every position, padding included."""
    reference, fast = pair(QUESTION)
    batch = make_batch(pattern)
    rows, seqlen = batch.real.shape
    starts, ends = torch.randint(0, seqlen, (rows,)), torch.randint(0, seqlen, (rows,))
    if spans == "at_padding":
        ends = torch.full((rows,), seqlen - 1)
        starts = torch.where(batch.real.all(1), 0, (~batch.real).int().argmax(1))
    elif spans == "outside":
        starts[0], ends[-1] = seqlen, seqlen + 30
    elif spans == "all_outside":
        starts[:] = ends[:] = 10_000
    elif spans == "negative":
        starts[0] = -3
    elif spans == "column":
        starts, ends = starts[:, None], ends[:, None]
    inputs = batch.inputs(start_positions=starts, end_positions=ends)
    assert_same_run(QUESTION, reference, fast, inputs, batch.real, everywhere=True)


@pytest.mark.parametrize("given", ["start_positions", "end_positions"])
def test_half_a_span_gives_no_loss(given):
    reference, fast = pair(QUESTION)
    batch = make_batch("right")
    assert_same_run(QUESTION, reference, fast, batch.inputs(**{given: torch.zeros(5, dtype=torch.int64)}), batch.real)


def real_token_loss(reference, batch, starts, ends):
    """The definition of real_tokens_only: transformers' loss with padding taken out of both softmaxes."""
    out = reference(**batch.inputs())
    losses = []
    for logits, positions in ((out.start_logits, starts), (out.end_logits, ends)):
        logits = logits.masked_fill(~batch.real, float("-inf"))
        losses.append(
            torch.nn.functional.cross_entropy(logits, positions.clamp(0, logits.shape[1]), ignore_index=logits.shape[1])
        )
    return sum(losses) / 2


@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "holes"])
def test_real_tokens_only_restricts_the_softmax(pattern):
    reference, fast = pair(QUESTION)
    batch = make_batch(pattern)
    starts, ends = batch.real.int().argmax(1), 11 - batch.real.flip(1).int().argmax(1)
    starts[1] = 12  # outside, ignored
    expected = real_token_loss(reference, batch, starts, ends)
    out = fast(**batch.inputs(start_positions=starts, end_positions=ends), real_tokens_only=True)
    assert_close("loss", out.loss, expected)
    assert_same_gradients(gradients(fast, out.loss), gradients(reference, expected))
    for logits in (out.start_logits, out.end_logits):
        assert_padding_is_below(logits, batch.real)
    assert_same_outputs(fast(**batch.inputs(), real_tokens_only=True), reference(**batch.inputs()), batch.real)


def test_real_tokens_only_is_another_loss_where_there_is_padding():
    _, fast = pair(QUESTION)
    batch = make_batch("right")
    inputs = batch.inputs(start_positions=torch.zeros(5, dtype=torch.int64), end_positions=torch.zeros(5, dtype=torch.int64))
    assert fast(**inputs).loss > fast(**inputs, real_tokens_only=True).loss + 0.01


def test_the_loss_over_padding_warns_once():
    _, fast = pair(QUESTION)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(QUESTION, batch))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            fast(**inputs)
    assert len([warning for warning in caught if "padding positions" in str(warning.message)]) == 1
    assert "a loss reads padding positions" in str(fastbert.explain(fast))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(**inputs, real_tokens_only=True)
        fast(**batch.inputs())


# ---- classification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["no_mask", "right", "left", "empty_row"])
@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"num_labels": 1}, torch.randn(5)),
        ({"num_labels": 1}, torch.randn(5, 1)),
        ({"num_labels": 1, "problem_type": "regression"}, torch.randn(5)),
        ({"num_labels": 3, "problem_type": "regression"}, torch.randn(5, 3)),
        ({"num_labels": 3}, torch.rand(5, 3).round()),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.rand(5, 3)),
        ({"num_labels": 3}, torch.tensor([0, 1, 2, 1, 0])),
        ({"num_labels": 3}, torch.tensor([[0], [1], [2], [1], [0]])),
        ({"num_labels": 3}, torch.tensor([0, IGNORED, 2, 1, IGNORED])),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, torch.tensor([0, 1, 2, 1, 0])),
    ],
    ids=[
        "mse",
        "mse_column",
        "regression",
        "regression_3",
        "bce",
        "multi_label",
        "classes",
        "column",
        "ignored",
        "single_label",
    ],
)
def test_problem_types(config, labels, pattern):
    reference, fast = pair(SEQUENCE, **config)
    batch = make_batch(pattern)
    assert_same_run(SEQUENCE, reference, fast, batch.inputs(labels=labels), batch.real)
    assert fast.config.problem_type == reference.config.problem_type


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_extra_keywords_are_taken_as_transformers_takes_them(head):
    """The Trainer passes num_items_in_batch; the causal loss uses it and the others ignore it."""
    reference, fast = pair(head)
    batch = make_batch("right", head)
    inputs = batch.inputs(**labels_for(head, batch), num_items_in_batch=torch.tensor(100))
    assert_same_run(head, reference, fast, inputs, batch.flat_real)


@pytest.mark.parametrize("items", [7, torch.tensor(7)])
@pytest.mark.parametrize("head", [LM_HEAD, LM_DECODER], ids=str)
def test_the_causal_loss_divides_by_the_number_of_items(head, items):
    reference, fast = pair(head)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch))
    plain = fast(**inputs).loss
    assert_same_run(head, reference, fast, inputs | {"num_items_in_batch": items}, batch.real)
    assert (fast(**inputs, num_items_in_batch=items).loss - plain).abs() > 1e-3


@pytest.mark.parametrize("head", [LM_HEAD, LM_DECODER], ids=str)
def test_the_causal_loss_takes_its_own_keywords(head):
    reference, fast = pair(head)
    batch = make_batch("right")
    labels = token_labels(batch, 120)
    for extra in ({"ignore_index": 3}, {"shift_labels": labels.roll(2, 1)}):
        assert_same_run(head, reference, fast, batch.inputs(labels=labels.clamp(0, 119), **extra), batch.real, everywhere=True)


@pytest.mark.parametrize("keep", [1, 3, 12, torch.tensor([0, 5, 6])], ids=str)
@pytest.mark.parametrize("pattern", ["no_mask", "left"])
@pytest.mark.parametrize("head", [LM_HEAD, LM_DECODER], ids=str)
def test_logits_to_keep(head, pattern, keep):
    reference, fast = pair(head)
    batch = make_batch(pattern)
    inputs = batch.inputs(logits_to_keep=keep)
    actual, expected = fast(**inputs), reference(**inputs)
    kept = batch.real[:, slice(-keep, None) if isinstance(keep, int) else keep]
    assert_same_outputs(actual, expected, kept)


# ---- labelled positions only -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*COMMON, "first_token_masked", "one_token", "one_real_token"])
@pytest.mark.parametrize("head", [MASKED_LM, PRETRAINING], ids=str)
def test_loss_without_logits(head, pattern):
    reference, fast = pair(head)
    batch = make_batch(pattern)
    inputs = batch.inputs(**labels_for(head, batch))
    expected, actual = reference(**inputs), fast(**inputs, return_logits=False)
    logits = "logits" if head is MASKED_LM else "prediction_logits"
    assert actual.get(logits) is None
    assert logits not in actual.keys()
    assert type(actual) is type(expected)
    assert_close("loss", actual.loss, expected.loss)
    if head is PRETRAINING:
        assert_close("seq_relationship_logits", actual.seq_relationship_logits, expected.seq_relationship_logits)
    assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


@pytest.mark.parametrize("case", ["padding", "one", "none", "all"])
@pytest.mark.parametrize("head", [MASKED_LM, PRETRAINING], ids=str)
def test_loss_without_logits_at_the_edges(head, case):
    reference, fast = pair(head)
    batch = make_batch("right")
    labels = torch.full(batch.real.shape, IGNORED)
    if case in ("padding", "all"):
        labels[~batch.real] = 5
    if case == "all":
        labels[batch.real] = 6
    if case == "one":
        labels[1, 1] = 0
    inputs = batch.inputs(**labels_for(head, batch) | {"labels": labels})
    expected, actual = reference(**inputs), fast(**inputs, return_logits=False)
    assert_close("loss", actual.loss, expected.loss)
    if case != "none":
        assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


@pytest.mark.parametrize("head", [MASKED_LM, PRETRAINING], ids=str)
def test_logits_are_only_left_out_where_there_is_a_loss(head):
    """return_logits=False without labels would leave nothing: the logits are there."""
    reference, fast = pair(head)
    batch = make_batch("right")
    assert_same_outputs(fast(**batch.inputs(), return_logits=False), reference(**batch.inputs()), batch.real)


@pytest.mark.parametrize("head", [MASKED_LM, PRETRAINING], ids=str)
def test_loss_without_logits_as_a_tuple(head):
    _, fast = pair(head)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch))
    out, as_tuple = fast(**inputs, return_logits=False), fast(**inputs, return_logits=False, return_dict=False)
    assert_same_outputs(as_tuple, out.to_tuple(), None, tolerance=0.0)


def test_loss_without_logits_with_an_untied_decoder_and_a_frozen_bias():
    reference, fast = pair(MASKED_LM, tie_word_embeddings=False)
    for model in (reference, fast):
        model.cls.predictions.decoder.bias.requires_grad_(False)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(MASKED_LM, batch))
    expected, actual = reference(**inputs), fast(**inputs, return_logits=False)
    assert_close("loss", actual.loss, expected.loss)
    assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


def test_loss_without_logits_sees_a_hook_on_the_decoder():
    """Also a replaced or hooked decoder counts when only the loss is computed."""
    reference, fast = pair(MASKED_LM)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(MASKED_LM, batch))
    plain = reference(**inputs).loss
    for model in (reference, fast):
        model.cls.predictions.decoder.register_forward_hook(lambda module, args, output: 3 * output)
    expected = reference(**inputs).loss
    assert (expected - plain).abs() > 0.1
    assert_close("loss", fast(**inputs, return_logits=False).loss, expected)


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_vocabulary_projection_runs_on_labelled_positions_only():
    _, fast = pair(MASKED_LM, vocab_size=4000)
    batch = make_batch("no_mask")
    labels = torch.full(batch.real.shape, IGNORED)
    labels[:, ::4] = 7
    inputs = batch.inputs(labels=labels)
    everywhere, labelled = flops(lambda: fast(**inputs)), flops(lambda: fast(**inputs, return_logits=False))
    projection = 2 * batch.real.numel() * 48 * 4000
    assert everywhere - labelled >= 0.7 * projection


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_padding_costs_nothing(head):
    """Three quarters padding: no more arithmetic than the real tokens alone, which shows that the batch was packed."""
    _, fast = pair(head)
    batch = make_batch("no_mask", head)
    batch.real[..., 3:] = False
    inputs = batch.inputs(attention_mask=batch.real.long())
    short = {name: value[..., :3].contiguous() for name, value in inputs.items()}
    with torch.no_grad():
        padded, alone = flops(lambda: fast(**inputs)), flops(lambda: fast(**short))
    head_work = 0 if head.pooled and head is not PRETRAINING else 9 * batch.real.shape[0] * 2 * 48 * (48 + 120)
    assert padded <= alone + head_work


@pytest.mark.parametrize("pattern", ["right", "holes"])
def test_hidden_states_beside_a_loss_over_padding(pattern):
    """Where the loss took the padded path, hidden states are transformers' at padding too."""
    reference, fast = pair(TOKEN)
    batch = make_batch(pattern)
    labels = torch.randint(0, 4, batch.real.shape)
    inputs = batch.inputs(labels=labels, output_hidden_states=True)
    with quiet_transformers():
        actual, expected = fast(**inputs), reference(**inputs)
    assert_same_outputs(actual, expected, None)
    assert at_real_tokens(actual.logits, ~batch.real).abs().min() > 0
