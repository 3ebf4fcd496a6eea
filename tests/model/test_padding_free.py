"""transformers' padding-free form: several sequences in one row, by cu_seq_lens_q/k or by position_ids that start again.

The right value is transformers' own under flash attention, whose package functions `flash_reference` writes in PyTorch, and
that of each sequence alone.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import DataCollatorWithFlattening

import fastbert
from tests.model.flash_reference import flash_on_cpu, use_flash
from tests.model.parity import (
    HEADS,
    LM_DECODER,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    QUESTION,
    TOKEN,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    config_for,
    gradients,
    pair,
    projection,
)

LENGTHS = [7, 12, 1, 5, 10]
TOTAL = sum(LENGTHS)
TOKEN_HEADS = [head for head in HEADS if not head.pooled or head in (MODEL, PRETRAINING)] + [LM_DECODER]


def sequences(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 120, (length,), generator=generator) for length in lengths]


def flattened(form, lengths=LENGTHS, **changes):
    """What transformers' collator makes of the sequences, and the labels that it adds for language models."""
    collator = DataCollatorWithFlattening(
        return_position_ids=form != "cu_seq_lens", return_flash_attn_kwargs=form != "position_ids"
    )
    batch = dict(collator([{"input_ids": ids.tolist()} for ids in sequences(lengths)]))
    labels = batch.pop("labels")
    return batch | changes, labels


def flash_pair(head=MODEL, **changes):
    reference, fast = pair(head, **changes)
    use_flash(reference, fast)
    return reference, fast


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "both"])
@pytest.mark.parametrize("head", TOKEN_HEADS, ids=str)
def test_every_token_head_equals_transformers(head, form):
    reference, fast = flash_pair(head, **({"use_cache": False} if head is LM_DECODER else {}))
    batch, _ = flattened(form)
    types = torch.randint(0, 2, (1, TOTAL), generator=torch.Generator().manual_seed(1))
    real = torch.ones(1, TOTAL, dtype=torch.bool)
    # transformers counts positions on through the row where only lengths are given: here both are told.
    positions = flattened("position_ids")[0]["position_ids"]
    with flash_on_cpu():
        expected = reference(**batch | {"position_ids": positions}, token_type_ids=types, output_hidden_states=True)
    actual = fast(**batch, token_type_ids=types, output_hidden_states=True)
    assert_same_outputs(actual, expected, None)
    assert_same_gradients(gradients(fast, projection(actual, real)), gradients(reference, projection(expected, real)))
    assert f"packed by the caller ({'position_ids' if form == 'position_ids' else 'cu_seq_lens'})" in str(
        fastbert.explain(fast)
    )


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "both"])
def test_equal_to_one_by_one(form):
    reference, fast = flash_pair()
    reference.config._attn_implementation = "sdpa"
    batch, _ = flattened(form)
    states = fast(**batch).last_hidden_state[0].split(LENGTHS)
    for ids, state in zip(sequences(), states):
        assert_close("state", state, reference(ids[None]).last_hidden_state[0])


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "both"])
@pytest.mark.parametrize("head", [MASKED_LM, TOKEN, LM_DECODER, PRETRAINING], ids=str)
def test_losses_of_token_heads(head, form):
    reference, fast = flash_pair(head, **({"use_cache": False} if head is LM_DECODER else {}))
    batch, labels = flattened(form)
    inputs = {"labels": labels % 4 if head is TOKEN else labels}
    inputs["labels"] = torch.where(labels < 0, labels, inputs["labels"])
    if head is PRETRAINING:
        inputs["next_sentence_label"] = torch.tensor([1])
    positions = flattened("position_ids")[0]["position_ids"]
    with flash_on_cpu():
        expected = reference(**batch | {"position_ids": positions}, **inputs)
    actual = fast(**batch, **inputs)
    assert_same_outputs(actual, expected, None)
    assert_same_gradients(gradients(fast, actual.loss), gradients(reference, expected.loss))


def test_the_loss_of_labelled_positions_alone():
    _, fast = flash_pair(MASKED_LM)
    batch, labels = flattened("both")
    labels = torch.where(torch.arange(TOTAL) % 3 == 0, labels, -100)
    assert_close("loss", fast(**batch, labels=labels, return_logits=False).loss, fast(**batch, labels=labels).loss)


def test_question_answering_of_one_row():
    reference, fast = flash_pair(QUESTION)
    batch, _ = flattened("both")
    spans = {"start_positions": torch.tensor([3]), "end_positions": torch.tensor([9])}
    with flash_on_cpu():
        expected = reference(**batch, **spans)
    assert_same_outputs(fast(**batch, **spans), expected, None)


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens"])
@pytest.mark.parametrize("head", [head for head in HEADS if head.pooled and head not in (MODEL, PRETRAINING)], ids=str)
def test_heads_of_one_row_a_sequence_refuse_several(head, form):
    """transformers would answer for the first sequence alone."""
    _, fast = flash_pair(head)
    batch, _ = flattened(form)
    with pytest.raises(
        ValueError, match=r"one sequence a row, got 5 in 1 \(by (position_ids|cu_seq_lens)\).*cu_seqlens and max_seqlen"
    ):
        fast(**batch)
    if not head.choices:  # whose rows are choices, by their own shape
        assert fast(**flattened("both", [9])[0]).logits.shape[0] == 1


def test_several_rows_with_lengths_across_them():
    """transformers flattens the rows before attention."""
    reference, fast = flash_pair()
    ids = torch.stack(sequences([12, 12, 12]))
    bounds = torch.tensor([0, 5, 12, 24, 30, 36], dtype=torch.int32)
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12, "max_length_k": 12}
    positions = torch.cat([torch.arange(n) for n in bounds.diff().tolist()]).view(3, 12)
    with flash_on_cpu():
        expected = reference(ids, position_ids=positions, **lengths)
    assert_same_outputs(fast(ids, position_ids=positions, **lengths), expected, None)
    assert_same_outputs(fast(ids, **lengths), expected, None)


def test_inputs_embeds():
    reference, fast = flash_pair()
    batch, _ = flattened("both")
    embeds = reference.embeddings.word_embeddings(batch.pop("input_ids")).detach()
    with flash_on_cpu():
        expected = reference(inputs_embeds=embeds, **batch)
    assert_same_outputs(fast(inputs_embeds=embeds, **batch), expected, None)


def test_longer_than_the_positions_of_the_model():
    """64 positions: a row of 80 tokens is no longer sequence."""
    lengths = [40, 40]
    reference, fast = flash_pair()
    batch, _ = flattened("cu_seq_lens", lengths)
    reference.config._attn_implementation = "sdpa"
    states = fast(**batch).last_hidden_state[0].split(lengths)
    for ids, state in zip(sequences(lengths), states):
        assert_close("state", state, reference(ids[None]).last_hidden_state[0])
    with pytest.raises(ValueError, match=r"at most 64 tokens.*got 65"):
        fast(**flattened("cu_seq_lens", [65, 3])[0])


def test_max_length_as_a_tensor_and_positions_from_another_start():
    reference, fast = flash_pair()
    batch, _ = flattened("both")
    batch |= {name: torch.tensor(12) for name in ("max_length_q", "max_length_k")}
    with flash_on_cpu():
        assert_same_outputs(fast(**batch), reference(**batch), None)
        shifted = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"] + 2}
        assert_same_outputs(fast(**shifted), reference(**shifted), None)


@pytest.mark.parametrize("mask", ["ones", "padding"])
@pytest.mark.parametrize("form", ["position_ids", "both"])
def test_with_a_mask_the_answer_is_transformers(form, mask):
    reference, fast = flash_pair()
    batch, _ = flattened(form, attention_mask=torch.ones(1, TOTAL, dtype=torch.int64))
    if mask == "padding":
        batch["attention_mask"][:, -4:] = 0
    real = batch["attention_mask"].bool()
    with flash_on_cpu():
        assert_same_outputs(fast(**batch), reference(**batch), real)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "both"])
def test_without_flash_attention_the_answer_is_transformers_and_said_once(form, implementation):
    reference, fast = pair(attn_implementation=implementation)
    batch, _ = flattened(form)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            for _ in range(2):
                assert_same_outputs(fast(**batch), reference(**batch), None)
    said = [str(one.message) for one in caught if "padding-free" in str(one.message)]
    assert len(said) == 1
    assert implementation in said[0]
    assert "attend to one another" in said[0]


def test_ordinary_positions_say_nothing():
    reference, fast = pair()
    ids = sequences([12])[0][None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            for positions in (torch.arange(12)[None], torch.arange(12)[None] + 3):
                assert_same_outputs(fast(ids, position_ids=positions), reference(ids, position_ids=positions), None)
    use_flash(fast)
    fast(ids, position_ids=torch.arange(12)[None])
    assert "no padding in the batch" in fastbert.explain(fast).notes["last call"]


def test_what_has_no_packed_form_is_left_to_transformers():
    reference, fast = flash_pair()
    batch, _ = flattened("both")
    for model in (reference, fast):
        model.encoder.layer[1].attention.self.register_forward_hook(lambda module, args, out: None)
    with flash_on_cpu():
        assert_same_outputs(fast(**batch), reference(**batch), None)
    assert "transformers on padded tensors" in str(fastbert.explain(fast))


def test_an_accelerated_model_and_batch_invariance():
    reference, _ = flash_pair()
    batch, _ = flattened("both")
    with flash_on_cpu():
        expected = reference(**batch)
    fastbert.accelerate(reference)
    assert_same_outputs(reference(**batch), expected, None)
    with torch.no_grad(), fastbert.batch_invariant():
        together = reference(**batch).last_hidden_state[0].split(LENGTHS)
        for index, length in enumerate(LENGTHS):
            alone = reference(sequences()[index][None]).last_hidden_state[0]
            assert torch.equal(together[index], alone), length


def lengths_of(bounds, longest=12, **changes):
    tensor = torch.tensor(bounds, dtype=torch.int32)
    return {"cu_seq_lens_q": tensor, "cu_seq_lens_k": tensor, "max_length_q": longest, "max_length_k": longest} | changes


REFUSED = {
    "lengths without the longest": (lengths_of([0, 35], max_length_k=None), "together, got no max_length_k"),
    "queries without keys": (lengths_of([0, 35], cu_seq_lens_k=None), "together, got no cu_seq_lens_k"),
    "only the longest": ({"max_length_q": 12}, "together, got no cu_seq_lens_q, cu_seq_lens_k, max_length_k"),
    "other keys": (lengths_of([0, 12, 24, 35], cu_seq_lens_k=torch.tensor([0, 11, 24, 35])), "cu_seq_lens_k to be equal"),
    "more keys": (lengths_of([0, 12, 24, 35], cu_seq_lens_k=torch.tensor([0, 35])), r"of one shape, got \(4,\) and \(2,\)"),
    "short of the tokens": (lengths_of([0, 12, 24, 34]), "rise from 0 to the 35 tokens of the input, got 0 to 34"),
    "not from zero": (lengths_of([1, 12, 24, 35]), "rise from 0 to the 35 tokens of the input, got 1 to 35"),
    "falling": (lengths_of([0, 24, 12, 35], 24), "falling in between"),
    "longest too short": (lengths_of([0, 12, 24, 35], 11), "max_length_q of at least 12, the longest sequence"),
    "a list": (lengths_of([0, 35], cu_seq_lens_q=[0, 35]), "cu_seq_lens_q as an int32 tensor, got list"),
    "two dimensions": (lengths_of([0, 35], cu_seq_lens_q=torch.tensor([[0, 35]])), r"shape \(sequences \+ 1,\)"),
    "positions that begin in a sequence": (
        {"position_ids": torch.cat([torch.arange(3, 12), torch.arange(26)])[None]},
        "begin with their smallest value",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_by_name(case):
    _, fast = flash_pair()
    arguments, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        fast(input_ids=flattened("both")[0]["input_ids"], **arguments)


def test_ids_of_one_dimension_are_refused_before_anything_else():
    _, fast = flash_pair()
    with pytest.raises(ValueError, match=r"expected input_ids of shape \(batch, seq\)"):
        fast(torch.cat(sequences()), **lengths_of([0, 12, 24, 35]))


def test_fastberts_own_packed_form_takes_no_second_lengths():
    _, fast = flash_pair()
    ids = torch.cat(sequences())
    bounds = torch.tensor([0, 12, 24, 35], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"either cu_seqlens and max_seqlen or transformers.*cu_seq_lens_q"):
        fast(ids, cu_seqlens=bounds, max_seqlen=12, **lengths_of([0, 12, 24, 35]))


def test_compiles_with_lengths_and_leaves_hidden_positions_to_transformers():
    _, fast = flash_pair(num_hidden_layers=1)
    batch, _ = flattened("both")
    expected = fast(**batch).last_hidden_state
    with torch.no_grad():
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        assert_close("state", compiled(**batch).last_hidden_state, expected.detach())


def test_an_inference_graph_does_not_take_positions_that_start_again():
    from fastbert.deploy.graphs import CompiledModel

    _, fast = flash_pair()
    batch, _ = flattened("position_ids")
    for mask in ({}, {"attention_mask": torch.ones(1, TOTAL)}):
        compiled = CompiledModel(fast, [(64, 8)], lambda bucket: SimpleNamespace())
        with torch.no_grad(), pytest.warns(UserWarning, match="position_ids under flash attention"):
            assert_same_outputs(compiled(**batch, **mask), fast(**batch), None)


def test_sentence_transformers_with_flattened_inputs(tmp_path):
    """Its usual fast set-up: text is flattened where flash attention is asked for, and pooled by cu_seq_lens_q."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import transformers

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *[f"##{c}" for c in "abcdefgh"]])
    )
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    transformers.BertModel(config_for(vocab_size=32)).save_pretrained(tmp_path)
    texts = ["a b c", "abc d e f g h", "h", "fed cab"]

    def encode(change):
        model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
        change(model)
        return model.encode(texts), model

    expected, _ = encode(lambda model: None)

    def flattening(model):
        fastbert.accelerate(model)
        use_flash(model[0].model)
        model[0].can_flatten_inputs = model[0]._can_flatten_inputs()
        assert model[0].can_flatten_inputs

    with flash_on_cpu():
        actual, model = encode(flattening)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=0, atol=1e-5)
    assert fastbert.explain(model).notes["last call"] == "packed by the caller (cu_seq_lens)"
