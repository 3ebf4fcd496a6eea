"""Random masks, lengths, ids and labels: the same answer as transformers, whatever comes."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.parity import (
    HEADS_AND_DECODER,
    MODEL,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    at_real_tokens,
    batch_of,
    gradients,
    pair,
    projection,
)

EXAMPLES = int(os.environ.get("FASTBERT_PROPERTY_EXAMPLES", "60"))
bounded = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

PAIRS = {str(head): pair(head, use_cache=False) for head in HEADS_AND_DECODER if not head.choices}
HEAD_OF = {str(head): head for head in HEADS_AND_DECODER if not head.choices}


@st.composite
def masks(draw) -> torch.Tensor:
    """Any boolean (B, S): prefixes, suffixes, holes, full and empty rows mixed in one batch."""
    rows, seqlen = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    real = torch.zeros(rows, seqlen, dtype=torch.bool)
    for row in range(rows):
        kind = draw(st.sampled_from(["prefix", "suffix", "holes", "full", "empty", "one"]))
        length = draw(st.integers(1, seqlen))
        if kind == "prefix":
            real[row, :length] = True
        elif kind == "suffix":
            real[row, -length:] = True
        elif kind == "holes":
            real[row] = torch.tensor(draw(st.lists(st.booleans(), min_size=seqlen, max_size=seqlen)))
        elif kind == "full":
            real[row] = True
        elif kind == "one":
            real[row, length - 1] = True
    return real


@bounded
@given(real=masks(), seed=st.integers(0, 2**16), name=st.sampled_from(sorted(PAIRS)))
def test_outputs_for_any_mask(real, seed, name):
    reference, fast = PAIRS[name]
    batch = batch_of(real, seed=seed)
    with torch.no_grad():
        expected, actual = reference(**batch.inputs()), fast(**batch.inputs())
    if HEAD_OF[name].pooled:
        # A sequence without any token has no pooled state of its own to compare.
        filled = real.any(1)
        for key in expected.keys():
            got, wanted = at_real_tokens(actual[key], real), at_real_tokens(expected[key], real)
            if got.shape[0] == real.shape[0]:
                got, wanted = got[filled], wanted[filled]
            assert_close(key, got, wanted)
    else:
        assert_same_outputs(actual, expected, real)
    assert all(value.isfinite().all() for value in actual.values())


@bounded
@given(real=masks(), seed=st.integers(0, 2**16), name=st.sampled_from(sorted(set(PAIRS) - {"BertModel"})), data=st.data())
def test_losses_and_gradients_for_any_mask_and_labels(real, seed, name, data):
    """Labels anywhere, on padding too."""
    reference, fast = PAIRS[name]
    head, batch = HEAD_OF[name], batch_of(real, seed=seed)
    labels = head.labels(batch)
    generator = torch.Generator().manual_seed(seed)
    density = data.draw(st.sampled_from([0.0, 0.2, 1.0]))
    for key, value in labels.items():
        if value.shape == real.shape:
            high = 4 if head is TOKEN else 120
            scattered = torch.randint(0, high, real.shape, generator=generator)
            chosen = torch.rand(real.shape, generator=generator) < density
            labels[key] = torch.where(chosen, scattered, value)
    inputs = batch.inputs(**labels)
    expected, actual = reference(**inputs), fast(**inputs)
    assert_close("loss", actual.loss, expected.loss)
    if expected.loss.isfinite() and expected.loss.requires_grad:
        assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss), may_vanish=True)


@bounded
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=7).filter(any), seed=st.integers(0, 2**16))
def test_packed_equals_padded_for_any_lengths(lengths, seed):
    reference, fast = PAIRS["BertModel"]
    real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    batch = batch_of(real, seed=seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    packed = {"cu_seqlens": cu_seqlens, "max_seqlen": max(lengths), "token_type_ids": batch.token_type_ids[real]}
    expected, actual = reference(**batch.inputs()), fast(batch.input_ids[real], **packed)
    assert_close("last_hidden_state", actual.last_hidden_state, expected.last_hidden_state[real])
    filled = real[:, 0]
    assert_close("pooler_output", actual.pooler_output[filled], expected.pooler_output[filled])


@bounded
@given(real=masks(), seed=st.integers(0, 2**16))
def test_projected_gradients_for_any_mask(real, seed):
    reference, fast = PAIRS["BertForQuestionAnswering"]
    batch = batch_of(real, seed=seed)
    scalars = [projection(model(**batch.inputs()), real) for model in (fast, reference)]
    assert_close("projection", *scalars, 1e-4)
    if scalars[1].requires_grad and real.any():
        grads = [gradients(model, scalar) for model, scalar in zip((fast, reference), scalars)]
        assert_same_gradients(*grads, may_vanish=True)


@settings(bounded, max_examples=max(10, EXAMPLES // 3))
@given(
    change=st.fixed_dictionaries(
        {
            "num_attention_heads": st.sampled_from([1, 2, 3, 4, 6]),
            "num_hidden_layers": st.integers(1, 3),
            "hidden_act": st.sampled_from(["gelu", "relu", "gelu_new", "silu", "gelu_pytorch_tanh", "mish"]),
            "intermediate_size": st.integers(1, 130),
            "layer_norm_eps": st.sampled_from([1e-12, 1e-5, 0.1]),
            "chunk_size_feed_forward": st.sampled_from([0, 0, 1]),
            "attn_implementation": st.sampled_from(["sdpa", "sdpa", "eager"]),
        }
    ),
    head=st.sampled_from([MODEL, TOKEN, SEQUENCE, QUESTION]),
    real=masks(),
)
def test_any_architecture(change, head, real):
    real[:, 0] = True
    reference, fast = pair(head, **change)
    batch = batch_of(real)
    assert_same_outputs(fast(**batch.inputs()), reference(**batch.inputs()), real)


def test_the_strategy_reaches_every_kind_of_mask():
    seen = {"full": False, "empty_row": False, "first_masked": False, "hole": False, "length_one": False}

    @settings(bounded, max_examples=200)
    @given(real=masks())
    def look(real):
        seen["full"] |= bool(real.all())
        seen["empty_row"] |= bool((~real.any(1)).any())
        seen["first_masked"] |= bool((real.any(1) & ~real[:, 0]).any())
        seen["hole"] |= bool((real[:, :-1] & ~real[:, 1:]).any() and (~real[:, :-1] & real[:, 1:]).any())
        seen["length_one"] |= real.shape[1] == 1

    look()
    assert all(seen.values()), seen


if EXAMPLES < 10:
    pytest.fail("FASTBERT_PROPERTY_EXAMPLES below 10 shows nothing")
